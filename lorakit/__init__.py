"""lorakit: fine-tune an open model on a free GPU or on a Mac, and know that it got better."""
