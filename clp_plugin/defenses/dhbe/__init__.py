"""DHBE: distillation with an adversarial game, in three parts."""
