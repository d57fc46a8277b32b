"""The room for making what is shipped: pretrained optimizers, results, executed lessons, report and gallery."""
