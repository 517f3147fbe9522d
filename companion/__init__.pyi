"""The names of companion that notebooks use, and where each is defined."""

# ruff: noqa: I001

from .claims.claims import claims_under as claims_under
from .claims.evidence import (
    changed_verdicts as changed_verdicts,
    check_claims as check_claims,
    read_evidence as read_evidence,
)
from .claims.quoted import read_quoted as read_quoted
from .evaluation.alignment import ClipScorer as ClipScorer
from .evaluation.comparison import (
    means_by_method as means_by_method,
    paired_difference as paired_difference,
)
from .evaluation.groups import (
    group_summary as group_summary,
    mask_gains as mask_gains,
    recognise_members as recognise_members,
)
from .evaluation.measure import (
    measure as measure,
    with_face_size as with_face_size,
)
from .faces.aligned import with_faces as with_faces
from .faces.recognisers import load_recogniser as load_recogniser
from .figures.attention import (
    attention_film as attention_film,
    layer_table as layer_table,
    looked_at as looked_at,
    mask_maps as mask_maps,
    noise_picture as noise_picture,
    order_table as order_table,
    paint_watched as paint_watched,
    reference_maps as reference_maps,
    word_maps as word_maps,
    words_of as words_of,
)
from .figures.diagrams import (
    pipeline_drawing as pipeline_drawing,
    read_layers as read_layers,
)
from .figures.display import as_html as as_html
from .figures.grids import (
    pairs_grid as pairs_grid,
    picture_grid as picture_grid,
    prompt_grid as prompt_grid,
    study_grid as study_grid,
)
from .figures.plots import (
    identity_plot as identity_plot,
    paired_plot as paired_plot,
    psnr_plot as psnr_plot,
    trade_off as trade_off,
    trade_off_plot as trade_off_plot,
)
from .figures.tables import (
    alignment_table as alignment_table,
    classification_table as classification_table,
    faces_table as faces_table,
    facts_table as facts_table,
    measured_table as measured_table,
    prompts_table as prompts_table,
    quoted_table as quoted_table,
    recognition_table as recognition_table,
    reference_table as reference_table,
    side_by_side as side_by_side,
    summary_table as summary_table,
    traits_table as traits_table,
)
from .figures.verdicts import (
    claim_table as claim_table,
    effects_table as effects_table,
    headline as headline,
    verdict_plot as verdict_plot,
    verdict_strip as verdict_strip,
    verdict_summary as verdict_summary,
    verdict_table as verdict_table,
)
from .loading import (
    load_controlled as load_controlled,
    load_image as load_image,
    load_profile as load_profile,
)
from .methods.fusion import fused as fused
from .methods.groups import (
    fused_group as fused_group,
    load_groups as load_groups,
)
from .pages.benchmark_plots import benchmark_plot as benchmark_plot
from .pages.benchmark_records import every_result as every_result
from .pages.benchmark_tables import (
    benchmark_table as benchmark_table,
    masks_table as masks_table,
    missed_table as missed_table,
    optimisations_table as optimisations_table,
    profile_table as profile_table,
    record_training as record_training,
    targets_table as targets_table,
)
from .pages.copies import (
    load_training_embeddings as load_training_embeddings,
    nearest_in_training as nearest_in_training,
    similarity_to_training as similarity_to_training,
)
from .pages.data_and_model_cards import (
    captions_and_pictures as captions_and_pictures,
    costs_table as costs_table,
    criteria_table as criteria_table,
    evenly_spread as evenly_spread,
    gains_table as gains_table,
    group_rows as group_rows,
    heldout_counts as heldout_counts,
    histograms as histograms,
    measured_rows as measured_rows,
    people_sheet as people_sheet,
    sampled_attributes as sampled_attributes,
    view_rows as view_rows,
)
from .pages.designs import designs_table as designs_table
from .pages.judging_judges import recogniser_separation as recogniser_separation
from .pages.model_card import (
    choose_suite_prompts as choose_suite_prompts,
    judge_suite as judge_suite,
    restored_rows as restored_rows,
)
from .pages.front_page import recorded_trade_off as recorded_trade_off
from .pages.morphing import (
    morph_gains as morph_gains,
    people_pairs as people_pairs,
)
from .pages.paired_faces import paired_regions as paired_regions
from .pages.paper_numbers import (
    observation_table as observation_table,
    open_keys_table as open_keys_table,
)
from .pages.paper_plots import (
    threshold_plot as threshold_plot,
    trade_off_line_plot as trade_off_line_plot,
)
from .pages.psnr_audit import (
    order_facts as order_facts,
    overflow_facts as overflow_facts,
    picture_pairs as picture_pairs,
)
from .pages.psnr_inversion import (
    inversion_plot as inversion_plot,
    inversion_table as inversion_table,
    other_reading_facts as other_reading_facts,
)
from .pages.psnr_snippets import snippet_table as snippet_table
from .pages.reference_gains import reference_gains as reference_gains
from .pages.reference_order import (
    order_effect as order_effect,
    reversal_effect as reversal_effect,
    zero_strength_effect as zero_strength_effect,
)
from .pages.suite_criteria import (
    criteria_of_people as criteria_of_people,
    distance_to_renders as distance_to_renders,
)
from .pages.training_lesson import (
    likeness_table as likeness_table,
    make_lesson as make_lesson,
    sample_sheet as sample_sheet,
    train_small as train_small,
)
from .pages.training_records import (
    loss_curves as loss_curves,
    trained_methods as trained_methods,
    training_hours as training_hours,
    training_table as training_table,
)
from .pages.two_detectors import (
    crops_sheet as crops_sheet,
    found_table as found_table,
    look_twice as look_twice,
    people_not_fitted as people_not_fitted,
    same_distances_table as same_distances_table,
)
from .person import (
    Person as Person,
    load_people as load_people,
)
from .studies.costs import cost_table as cost_table
from .studies.declaration import load_models as load_models
from .studies.experiment import experiment as experiment
from .studies.prompts import (
    expression_prompts as expression_prompts,
    style_prompts as style_prompts,
)
from .studies.study import (
    Study as Study,
    run_label as run_label,
)
from .studio.interactive import open_studio as open_studio
