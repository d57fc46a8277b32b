"""The room for making what is shipped: pretrained optimizers, recorded results, the report."""
