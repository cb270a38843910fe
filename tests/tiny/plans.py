"""A plan of a run from the few numbers that a test is about."""

from lightning_apps.training.plan import plan_run

BUDGET = {
    "max_steps": None,
    "max_epochs": None,
    "max_tokens": None,
    "evaluate_every": 0.1,
    "save_every": "never",
    "clip_norm": None,
}


def plan(warmup=0.05, samples=1055, batch=64, inner_steps=1, **trainer):
    return plan_run(
        num_train_samples=samples,
        tokens_per_sample=22.0,
        global_batch_size=batch,
        trainer={**BUDGET, **trainer},
        warmup=warmup,
        inner_steps=inner_steps,
    )
