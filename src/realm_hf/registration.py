"""What `import realm_hf` makes known to transformers, without importing it: that takes seconds.

Each part is registered when transformers' own module for it has been imported, as a stand-in for a class that is
imported when it is used (see [`lazy_class`]). The models' register is asked by the configuration's class: they follow
when that is defined.
"""

import sys
from importlib import import_module
from typing import Any

from realm_hf.lazy_exports import lazy_class, when_imported

__all__ = ["TASK", "register", "register_classes", "register_pipeline"]

TASK = "open-domain-qa"
"""The task of `transformers.pipeline`."""
_CONFIGURATION = "realm_hf.models.configuration_realm"


def register() -> None:
    """Make configuration, tokenizer, models and pipeline known to transformers; done by `import realm_hf`."""
    when_imported("transformers.models.auto.configuration_auto", _register_configuration)
    when_imported("transformers.models.auto.tokenization_auto", _define_configuration)
    when_imported("transformers.pipelines", register_pipeline)


def _register_configuration() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    AutoConfig.register("realm", lazy_class(_CONFIGURATION, "RealmConfig"), exist_ok=True)


def _define_configuration() -> None:
    # The register of tokenizers is asked by the name of a tokenizer, too, where there is no configuration.
    if _CONFIGURATION not in sys.modules:
        import_module(_CONFIGURATION)


def register_classes(configuration: type[Any]) -> None:
    """
    Register what belongs to the configuration's class.

    Args:
        configuration (`type`): [`RealmConfig`], which calls this when it is defined.
    """
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForMaskedLM,
        AutoModelForPreTraining,
        AutoModelForQuestionAnswering,
        AutoTokenizer,
    )

    AutoConfig.register("realm", configuration, exist_ok=True)
    AutoTokenizer.register(
        configuration, tokenizer_class=lazy_class("realm_hf.models.tokenization_realm", "RealmTokenizer")
    )
    for kind, module, model in (
        (AutoModel, "modeling_embedder", "RealmEmbedder"),
        (AutoModelForMaskedLM, "modeling_encoder", "RealmKnowledgeAugEncoder"),
        (AutoModelForPreTraining, "modeling_realm", "RealmForPreTraining"),
        (AutoModelForQuestionAnswering, "modeling_realm_qa", "RealmForOpenQA"),
    ):
        kind.register(configuration, lazy_class(f"realm_hf.models.{module}", model, config_class=configuration))


def register_pipeline() -> None:
    """Make the task known to `transformers.pipeline`."""
    from transformers.pipelines import PIPELINE_REGISTRY

    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        model = lazy_class("realm_hf.models.modeling_realm_qa", "RealmForOpenQA")
        pipeline = lazy_class("realm_hf.qa.pipeline", "OpenQAPipeline")
        PIPELINE_REGISTRY.register_pipeline(TASK, pipeline, pt_model=model, type="text")
