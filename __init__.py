"""sculpt: checkpoint surgery for fine-tuned models that forgot."""
