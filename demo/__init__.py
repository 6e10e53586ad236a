"""The whole story on a real model: fine-tune it until it forgets, fuse it, and measure what came back."""
