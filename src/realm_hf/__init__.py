"""REALM pre-training for Hugging Face: `import realm_hf` registers the models with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer

from .configuration_realm import RealmConfig
from .modeling_outputs import RealmEmbedderOutput, RealmForPreTrainingOutput, RealmScorerOutput
from .modeling_realm import RealmEmbedder, RealmForPreTraining, RealmKnowledgeAugEncoder, RealmScorer
from .tokenization_realm import RealmTokenizer

AutoConfig.register("realm", RealmConfig)
AutoTokenizer.register(RealmConfig, tokenizer_class=RealmTokenizer)
AutoModel.register(RealmConfig, RealmEmbedder)
AutoModelForMaskedLM.register(RealmConfig, RealmKnowledgeAugEncoder)
AutoModelForPreTraining.register(RealmConfig, RealmForPreTraining)

__all__ = [
    "RealmConfig",
    "RealmEmbedder",
    "RealmEmbedderOutput",
    "RealmForPreTraining",
    "RealmForPreTrainingOutput",
    "RealmKnowledgeAugEncoder",
    "RealmScorer",
    "RealmScorerOutput",
    "RealmTokenizer",
]
