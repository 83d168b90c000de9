"""`python -m tests.fuzz --minutes 10`, or `make fuzz`: atheris over the targets; `--records N`: mutated records.

A finding ends the run: atheris writes the input into the working folder, and it goes into the corpus with its mend.
"""

import logging
import os
import random
import sys
import warnings
from pathlib import Path

import click

FOUND = Path(".cache/fuzz")
_INSTRUMENTED = ["schemas", "worker.headers", "worker.images", "worker.prepare", "PIL"]
_HANG_S = 10
_MEMORY_MB = 6_000
_MAX_BYTES = 8_192


@click.command()
@click.option("--minutes", type=float, help="fuzz for so long")
@click.option("--records", type=int, help="put so many mutated records through the prepare stage")
@click.option("--threads", default=2, show_default=True, help="prepare threads for the records")
@click.option("--seed", default=0, show_default=True, help="of the mutations")
@click.option("--write-corpus", is_flag=True, help="write the seeds and a mutant of each into tests/fuzz/corpus")
def main(minutes: float | None, records: int | None, threads: int, seed: int, *, write_corpus: bool) -> None:
    """Fuzz, or count what comes of mutated records."""
    warnings.simplefilter("ignore")
    _silence_native_code()
    if write_corpus:
        from tests.fuzz import targets  # noqa: PLC0415 - see _fuzz

        targets.write_corpus(targets.CORPUS, random.Random(seed))  # noqa: S311 - mutations, no secret
    if records is not None:
        _count(records, seed, threads)
    if minutes is not None:
        _fuzz(minutes)


def _silence_native_code() -> None:
    """Let Pillow's and libtiff's own lines about broken files go nowhere."""
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _count(records: int, seed: int, threads: int) -> None:
    from tests.fuzz.mutants import run_mutants  # noqa: PLC0415 - see _fuzz

    figures = run_mutants(records, seed, threads, click.echo)
    for outcome, count in figures.outcomes.most_common():
        click.echo(f"{count:>9} {outcome}")
    click.echo(
        f"{figures.records} outcomes of {records} records in {figures.took_s:.0f} s, "
        f"{figures.records / figures.took_s:.0f} a second; the slowest took {figures.slowest[0] * 1e3:.0f} ms of CPU; "
        f"memory {figures.settled_bytes / 1e6:.0f} MB after a fifth, {figures.peak_bytes / 1e6:.0f} MB at the end"
    )
    if troubles := figures.troubles(records):
        raise click.ClickException("; ".join(troubles))


def _fuzz(minutes: float) -> None:
    """Fuzz in this process, which atheris ends."""
    try:
        import atheris  # noqa: PLC0415 - on Linux on x86-64 only
    except ImportError as error:
        raise click.ClickException("atheris is for Linux on x86-64: `make fuzz` runs nowhere else") from error
    # Only what is imported inside is instrumented, so nothing of these is imported before.
    with atheris.instrument_imports(include=_INSTRUMENTED):
        from tests.fuzz import targets  # noqa: PLC0415
    targets.write_corpus(FOUND / "seeds", random.Random(0))  # noqa: S311 - mutations, no secret
    new = FOUND / "corpus"
    new.mkdir(parents=True, exist_ok=True)
    arguments = [
        *("-max_total_time=" + str(int(minutes * 60)), f"-timeout={_HANG_S}", f"-rss_limit_mb={_MEMORY_MB}"),
        *(f"-max_len={_MAX_BYTES}", f"-artifact_prefix={FOUND}/", "-print_final_stats=1"),
        *(str(new), str(targets.CORPUS), str(FOUND / "seeds")),
    ]
    os.dup2(sys.stderr.fileno(), 2)
    atheris.Setup([sys.argv[0], *arguments], targets.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
