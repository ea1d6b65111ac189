"""LoRA adapters over one base model: read, chosen per request, batched together, merged."""
