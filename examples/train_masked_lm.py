"""Teach an encoder by masked language modelling: the command `realm-hf warm-start masked-lm` as a script.

accelerate launch examples/train_masked_lm.py --knowledge_corpus wiki.parquet --output_dir runs/masked-lm \
        --model_name_or_path sentence-transformers/all-MiniLM-L6-v2 --max_steps 5000 --learning_rate 5e-4
"""

import sys

from realm_hf.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["warm-start", "masked-lm", *sys.argv[1:]]))
