# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Reading results
#
# A sweep leaves a folder: a manifest and Parquet tables that any tool can read. We look at it by SQL, as arrays and as
# tables for a paper, draw the figures of the report with other choices, and write the page again.
#
# Set `FLJAX_FAST=1` to run the notebook with a small sweep. In daily life the folder is there already, and you begin at
# `fljax.results("results/...")`.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import fljax
from fljax.cli import main
from fljax.report import metric_figure, pareto_figure, summarise

# %matplotlib inline
FAST = bool(os.environ.get("FLJAX_FAST"))
FOLDER = Path("results/reading")

# %% [markdown]
# An experiment file of our own, and the command that runs it; in a shell that is `fljax sweep reading.toml`.

# %%
budgets, clips, rounds, seeds = (
    ("8.0, inf", "0.25, inf", 8, 2) if FAST else ("2.0, 8.0, inf", "0.25, 0.25, inf", 100, 3)
)
Path("reading.toml").write_text(f"""
title = "Half of the neurons under a budget"
rounds = {rounds}
eval_every = {rounds // 4}
data.name = "digits"
model = {{name = "mlp", hidden = [32]}}
client = {{lr = 0.3, steps = 5}}
server = {{lr = 0.2, momentum = 0.9}}
sampler = {{kind = "poisson", rate = 0.3}}
privacy = {{mechanism = "central_gaussian", delta = 1e-3}}
dropout = {{source = "fisher", warmup_rounds = 2}}

[sweep]
seeds = {seeds}
zip = {{"privacy.epsilon" = [{budgets}], "privacy.clip" = [{clips}]}}
grid = {{"dropout.keep_rate" = [1.0, 0.5]}}
""")
assert main(["sweep", "reading.toml", "--out", str(FOLDER), "--quiet"]) == 0

# %%
results = fljax.results(FOLDER)
results

# %% [markdown]
# ## As arrays
#
# `trials` has one row per trial: the swept fields under their dotted names, final metrics, bytes, ε. `curves` has one
# row per evaluated round. Both are dictionaries of NumPy arrays.

# %%
{name: column[:4] for name, column in results.trials.items()}

# %% [markdown]
# ## By SQL
#
# The same two tables for DuckDB. Dotted names want double quotes.

# %%
query = """
    select "privacy.epsilon" as target, "dropout.keep_rate" as keep_rate,
           avg(test_accuracy) as accuracy, stddev(test_accuracy) as spread, avg(uplink_bytes) / 1e6 as uplink_mb
    from trials group by all order by all
"""
answer = results.sql(query)
answer

# %% [markdown]
# ## As a table
#
# Cells hold trials that differ in nothing but the seed; asking for less than all axes is an error, because a spread
# over learning rates is not one over seeds.

# %%
print(summarise(results, "test_accuracy").to_latex())

# %% [markdown]
# ## As a figure
#
# The figures of the report are functions of the results, and every one says in small print what its numbers rest on.

# %%
metric_figure(results, wide=True)

# %%
pareto_figure(results, wide=True)

# %% [markdown]
# Or draw your own. A curve is a selection by trial:

# %%
curves, trials = results.curves, results.trials
fig, ax = plt.subplots(figsize=(5.2, 3), layout="constrained")
for keep_rate, style in ((1.0, "-"), (0.5, "--")):
    wanted = trials["trial"][(trials["privacy.epsilon"] == 8.0) & (trials["dropout.keep_rate"] == keep_rate)]
    for trial in wanted:
        here = curves["trial"] == trial
        label = f"keep rate {keep_rate:g}" if trial == wanted[0] else None
        ax.plot(curves["round"][here], curves["test_accuracy"][here], style, color="C0", alpha=0.7, label=label)
ax.set(xlabel="round", ylabel="test accuracy", title="ε = 8, one line per seed")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# ## What may be claimed
#
# Privacy statements belong to the results. Each says its status, and a number only where there is one.

# %%
for statement in results.privacy[:2]:
    print(
        f"{statement['cell']}: {statement['status']}, ({statement['epsilon']:.3f}, {statement['delta']:g})-DP per user"
    )
    print(f"  {statement['relation']}; {statement['sampler']}; {statement['accountant']}")

# %% [markdown]
# The best cell was chosen by the numbers it is shown with; nothing above charges for that choice.

# %%
best = int(np.argmax(answer["accuracy"]))
print({name: column[best] for name, column in answer.items()})

# %% [markdown]
# ## The page, and whom to cite
#
# The sweep left a page beside the tables, one file that needs no network. `fljax report results/reading` writes it
# again, with all figures as SVG, PDF and PNG. The references follow from the experiment.

# %%
print(sorted(path.name for path in FOLDER.iterdir() if not path.name.startswith(".")))
print(fljax.citation(fljax.load("reading.toml")))
