"""The persistent compilation cache: a run that is started again need not compile again."""

import contextlib
from collections.abc import Iterator

import jax
from absl import logging
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

WORKDIR, OFF = "workdir", "off"


@contextlib.contextmanager
def cached_compilation(where: str, workdir: epath.Path) -> Iterator[None]:
    """While entered, JAX reads compiled programs from a folder and writes them to it.

    Programs that compile in less than a second are not kept
    (`jax_persistent_cache_min_compile_time_secs`). Of several processes the first one writes, so
    the folder must be one that all share. Whoever can write to it can run code in the job.

    Args:
      where: "workdir" (its folder `compiled`, unless JAX_COMPILATION_CACHE_DIR names another),
        "off", or a folder for several runs to share.
      workdir: of the run.
    """
    if where == OFF:
        yield
        return
    before = jax.config.values["jax_compilation_cache_dir"]
    if where == WORKDIR:
        where = before or str(workdir / "compiled")
    folder = epath.Path(where)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    compilation_cache.reset_cache()  # JAX opens a cache once, and would keep to that one
    logging.info("Compiled programs are kept in %s", folder)
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()
