"""Jobs that do not depend on each other: run here, in processes of this machine or on a Dask cluster, none of them twice."""

from onnxprune.jobs.checkpoint import Checkpoint
from onnxprune.jobs.job import Job, Place, Result, Shared, Work
from onnxprune.jobs.run import Jobs, check_place, place_of

__all__ = ["Checkpoint", "Job", "Jobs", "Place", "Result", "Shared", "Work", "check_place", "place_of"]
