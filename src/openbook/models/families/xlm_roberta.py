"""XLM-RoBERTa (Conneau et al. 2019): RoBERTa with the words of a hundred languages."""

from __future__ import annotations

from dataclasses import replace

from openbook.models.families.roberta import FAMILY as ROBERTA
from openbook.models.families.roberta import heads

FAMILY = replace(ROBERTA, model_type="xlm-roberta", heads=heads("XLMRoberta"))
