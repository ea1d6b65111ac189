"""CamemBERT (Martin et al. 2019): RoBERTa in French."""

from __future__ import annotations

from dataclasses import replace

from openbook.models.families.roberta import FAMILY as ROBERTA
from openbook.models.families.roberta import heads

FAMILY = replace(ROBERTA, model_type="camembert", heads=heads("Camembert"))
