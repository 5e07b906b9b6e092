"""The task "open-domain-qa" of `transformers.pipeline`; its pipeline is imported when one is made."""

from realm_hf.lazy_exports import lazy_class

__all__ = ["TASK", "register_pipeline"]

TASK = "open-domain-qa"


def register_pipeline() -> None:
    """Make the task known to `transformers.pipeline`; done by `import realm_hf` once transformers has pipelines."""
    from transformers.pipelines import PIPELINE_REGISTRY  # here, because it brings all of transformers' models' base

    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        model = lazy_class("realm_hf.models.modeling_realm_qa", "RealmForOpenQA")
        pipeline = lazy_class("realm_hf.qa.pipeline", "OpenQAPipeline")
        PIPELINE_REGISTRY.register_pipeline(TASK, pipeline, pt_model=model, type="text")
