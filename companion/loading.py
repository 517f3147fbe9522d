"""What notebooks take from fusionlib beside its public names: profiles, pipelines, pictures."""

from fusionlib.inputs.images import load_image as load_image
from fusionlib.profiles import load_profile as load_profile
from fusionlib.profiles.loading import load_controlled as load_controlled
from fusionlib.profiles.loading import load_pipeline as load_pipeline
