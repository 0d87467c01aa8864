"""A training of a few steps that writes nothing."""

import pytorch_lightning as pl


def train(model, data, max_steps=3, start=None, limit_val_batches=0, **options):
    """Trains on a CPU without files or output, from a checkpoint if one is given; returns the trainer."""
    trainer = pl.Trainer(
        max_epochs=-1,
        max_steps=max_steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=limit_val_batches,
        **options,
    )
    trainer.fit(model, data, ckpt_path=start)
    return trainer
