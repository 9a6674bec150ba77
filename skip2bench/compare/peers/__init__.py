"""LoRA that others wrote, trained on the same data: LitGPT's own command, Hugging Face PEFT."""
