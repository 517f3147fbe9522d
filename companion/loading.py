"""Names of fusionlib that notebooks use beside its public ones: profiles, pipelines, pictures."""

from fusionlib.inputs.images import load_image as load_image
from fusionlib.profiles import load_profile as load_profile
from fusionlib.profiles.loading import load_controlled as load_controlled
