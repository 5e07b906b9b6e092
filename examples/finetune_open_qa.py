"""Fine-tune REALM on questions and answers: the command `realm-hf finetune` as a script.

accelerate launch examples/finetune_open_qa.py --model_name_or_path RUN/model --output_dir runs/qa \
        --train_questions train.jsonl --dev_questions dev.jsonl --num_train_epochs 20 --eval_steps 500
accelerate launch examples/finetune_open_qa.py examples/finetune_open_qa.yaml --max_steps 50
accelerate launch examples/finetune_open_qa.py examples/finetune_open_qa.yaml --resume_from_checkpoint true
"""

import sys

from realm_hf.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))
