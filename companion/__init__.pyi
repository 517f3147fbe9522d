"""The names of companion that notebooks use, and where each is defined."""

from .claims.claims import (
    broken as broken,
)
from .claims.claims import (
    check_claims as check_claims,
)
from .claims.claims import (
    claims_under as claims_under,
)
from .claims.claims import (
    read_evidence as read_evidence,
)
from .claims.claims import (
    record_claim as record_claim,
)
from .claims.claims import (
    record_pairs as record_pairs,
)
from .claims.quoted import read_quoted as read_quoted
from .evaluation.alignment import ClipScorer as ClipScorer
from .evaluation.comparison import (
    best_of as best_of,
)
from .evaluation.comparison import (
    estimate_change as estimate_change,
)
from .evaluation.comparison import (
    estimate_mean as estimate_mean,
)
from .evaluation.comparison import (
    estimate_of as estimate_of,
)
from .evaluation.comparison import (
    estimate_recovery as estimate_recovery,
)
from .evaluation.comparison import (
    paired_difference as paired_difference,
)
from .evaluation.comparison import (
    recovery as recovery,
)
from .evaluation.comparison import (
    summary as summary,
)
from .evaluation.comparison import (
    with_accepted as with_accepted,
)
from .evaluation.comparison import (
    with_likeness_kept as with_likeness_kept,
)
from .evaluation.comparison import (
    with_prompt_followed as with_prompt_followed,
)
from .evaluation.groups import (
    group_summary as group_summary,
)
from .evaluation.groups import (
    mask_gains as mask_gains,
)
from .evaluation.groups import (
    who_is_who as who_is_who,
)
from .evaluation.measure import (
    measure as measure,
)
from .evaluation.measure import (
    measure_identity as measure_identity,
)
from .evaluation.measure import (
    with_face_size as with_face_size,
)
from .evaluation.quality import reconstruct as reconstruct
from .faces.aligned import align_faces as align_faces
from .faces.aligned import with_faces as with_faces
from .faces.recognisers import load_recogniser as load_recogniser
from .faces.recognisers import load_recognisers as load_recognisers
from .figures.attention import (
    attention_film as attention_film,
)
from .figures.attention import (
    layer_table as layer_table,
)
from .figures.attention import (
    looked_at as looked_at,
)
from .figures.attention import (
    mask_maps as mask_maps,
)
from .figures.attention import (
    noise_picture as noise_picture,
)
from .figures.attention import (
    order_table as order_table,
)
from .figures.attention import (
    paint_watched as paint_watched,
)
from .figures.attention import (
    reference_maps as reference_maps,
)
from .figures.attention import (
    word_maps as word_maps,
)
from .figures.attention import (
    words_of as words_of,
)
from .figures.diagrams import pipeline_drawing as pipeline_drawing
from .figures.diagrams import read_layers as read_layers
from .figures.display import as_html as as_html
from .figures.grids import (
    pairs_grid as pairs_grid,
)
from .figures.grids import (
    picture_grid as picture_grid,
)
from .figures.grids import (
    prompt_grid as prompt_grid,
)
from .figures.grids import (
    study_grid as study_grid,
)
from .figures.plots import (
    distance_plot as distance_plot,
)
from .figures.plots import (
    paired_plot as paired_plot,
)
from .figures.plots import (
    psnr_plot as psnr_plot,
)
from .figures.plots import (
    trade_off as trade_off,
)
from .figures.plots import (
    trade_off_plot as trade_off_plot,
)
from .figures.tables import (
    alignment_table as alignment_table,
)
from .figures.tables import (
    classification_table as classification_table,
)
from .figures.tables import (
    facts_table as facts_table,
)
from .figures.tables import (
    measured_table as measured_table,
)
from .figures.tables import (
    prompts_table as prompts_table,
)
from .figures.tables import (
    quoted_table as quoted_table,
)
from .figures.tables import (
    recognition_table as recognition_table,
)
from .figures.tables import (
    run_label as run_label,
)
from .figures.tables import (
    side_by_side as side_by_side,
)
from .figures.tables import (
    summary_table as summary_table,
)
from .figures.verdicts import (
    claim_table as claim_table,
)
from .figures.verdicts import (
    verdict_plot as verdict_plot,
)
from .figures.verdicts import (
    verdict_strip as verdict_strip,
)
from .figures.verdicts import (
    verdict_summary as verdict_summary,
)
from .figures.verdicts import (
    verdict_table as verdict_table,
)
from .loading import (
    load_controlled as load_controlled,
)
from .loading import (
    load_image as load_image,
)
from .loading import (
    load_pipeline as load_pipeline,
)
from .loading import (
    load_profile as load_profile,
)
from .methods import Models as Models
from .methods import build_available as build_available
from .methods.fusion import fused as fused
from .methods.fusion import text_only as text_only
from .methods.groups import (
    fused_group as fused_group,
)
from .methods.groups import (
    load_groups as load_groups,
)
from .methods.groups import (
    posed_like_the_next as posed_like_the_next,
)
from .pages.benchmark_plots import (
    benchmark_plot as benchmark_plot,
)
from .pages.benchmark_tables import (
    benchmark_table as benchmark_table,
)
from .pages.benchmark_records import (
    every_result as every_result,
)
from .pages.benchmark_tables import (
    masks_table as masks_table,
)
from .pages.benchmark_tables import (
    missed_table as missed_table,
)
from .pages.benchmark_tables import (
    optimisations_table as optimisations_table,
)
from .pages.benchmark_tables import (
    profile_table as profile_table,
)
from .pages.benchmark_tables import (
    record_training as record_training,
)
from .pages.benchmark_tables import (
    targets_table as targets_table,
)
from .pages.copies import (
    how_similar as how_similar,
)
from .pages.copies import (
    load_seen as load_seen,
)
from .pages.copies import (
    neighbours as neighbours,
)
from .pages.covered_faces import cover_first as cover_first
from .pages.data_and_model_cards import (
    captioned as captioned,
)
from .pages.data_and_model_cards import (
    costs_table as costs_table,
)
from .pages.data_and_model_cards import (
    criteria_table as criteria_table,
)
from .pages.data_and_model_cards import (
    gains_table as gains_table,
)
from .pages.data_and_model_cards import (
    group_rows as group_rows,
)
from .pages.data_and_model_cards import (
    heldout_counts as heldout_counts,
)
from .pages.data_and_model_cards import (
    histograms as histograms,
)
from .pages.data_and_model_cards import (
    measured_rows as measured_rows,
)
from .pages.data_and_model_cards import (
    people_sheet as people_sheet,
)
from .pages.data_and_model_cards import (
    sampled as sampled,
)
from .pages.data_and_model_cards import (
    spread as spread,
)
from .pages.data_and_model_cards import (
    view_rows as view_rows,
)
from .pages.judging_judges import classification as classification
from .pages.judging_judges import recognition as recognition
from .pages.morphing import morph_gains as morph_gains
from .pages.psnr_audit import overflow_facts as overflow_facts
from .pages.psnr_audit import pair_up as pair_up
from .pages.reference_gains import reference_gains as reference_gains
from .pages.reference_order import (
    order_effect as order_effect,
)
from .pages.reference_order import (
    reversal as reversal,
)
from .pages.reference_order import (
    without_strength as without_strength,
)
from .pages.suite_criteria import of_people as of_people
from .pages.training_lesson import (
    likeness_table as likeness_table,
)
from .pages.training_lesson import (
    make_lesson as make_lesson,
)
from .pages.training_lesson import (
    sample_sheet as sample_sheet,
)
from .pages.training_lesson import (
    train_small as train_small,
)
from .pages.training_records import (
    loss_curves as loss_curves,
)
from .pages.training_records import (
    trained_methods as trained_methods,
)
from .pages.training_records import (
    training_hours as training_hours,
)
from .pages.training_records import (
    training_table as training_table,
)
from .person import Person as Person
from .person import load_people as load_people
from .studies.costs import cost_table as cost_table
from .studies.declaration import resized as resized
from .studies.prompts import expression_prompts as expression_prompts
from .studies.prompts import style_prompts as style_prompts
from .studies.records import recorded as recorded
from .studies.study import Study as Study
from .studies.study import run_study as run_study
from .studio.interactive import open_studio as open_studio
