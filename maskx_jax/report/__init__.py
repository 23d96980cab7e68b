"""Reports of evaluations: a folder of static HTML that opens without a server or a network.

from maskx_jax import report
dataset, models = report.open_runs(["RUN"])
report.write(dataset, models, "REPORT")
"""

from maskx_jax.report.inputs import Dataset, Model, default_folder, open_files, open_runs
from maskx_jax.report.writing import write

__all__ = ["Dataset", "Model", "default_folder", "open_files", "open_runs", "write"]
