"""The stages that make a checkpoint, in the order of the paper: distill, finetune, describe, encode, fit."""
