"""Pre-train REALM on your own text: the command `realm-hf pretrain` as a script.

accelerate launch examples/pretrain.py --knowledge_corpus wiki.parquet --output_dir runs/mine \
        --model_name_or_path google-bert/bert-base-uncased --inverse_cloze_steps 1000 --max_steps 2000
accelerate launch examples/pretrain.py examples/pretrain.yaml --max_steps 50
accelerate launch examples/pretrain.py examples/pretrain.yaml --resume_from_checkpoint true
"""

import sys

from realm_hf.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
