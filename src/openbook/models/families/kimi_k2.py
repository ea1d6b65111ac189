"""Kimi K2 (Kimi Team 2025): DeepSeek V3's architecture and layout under a name of its own."""

from __future__ import annotations

from dataclasses import replace

from openbook.models.families.deepseek_v3 import FAMILY as V3

FAMILY = replace(V3, model_type="kimi_k2")
