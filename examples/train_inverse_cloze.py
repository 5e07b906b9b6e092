"""Warm-start a retriever by the inverse cloze task: the command `realm-hf warm-start inverse-cloze` as a script.

accelerate launch examples/train_inverse_cloze.py --knowledge_corpus wiki.parquet --output_dir runs/ict \
        --model_name_or_path google-bert/bert-base-uncased --max_steps 1000
"""

import sys

from realm_hf.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["warm-start", "inverse-cloze", *sys.argv[1:]]))
