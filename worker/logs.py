"""How the process logs: text for a person, a JSON object a line for a log collector."""

import logging
import sys
import warnings

from pythonjsonlogger.json import JsonFormatter

from worker.settings import Settings

_TEXT = "%(asctime)s %(levelname)-8s %(name)s: %(message)s"


def configure_logging(settings: Settings) -> None:
    """Log to standard error in the format and from the level of the settings."""
    as_text = settings.log_format == "text" or (settings.log_format is None and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(
        logging.Formatter(_TEXT)
        if as_text
        else JsonFormatter(
            ["levelname", "name", "threadName", "message"],
            rename_fields={"levelname": "level", "name": "logger", "threadName": "thread"},
            timestamp=True,
        )
    )
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    # What is odd about a picture is the picture's matter, and in its dead letter.
    warnings.filterwarnings("ignore", module="PIL")
    # torch warns of a record's read-only memory, of which worker.fit only reads.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    # worker.cuda finds with it what waits for the device.
    warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype feature")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    for talkative in ("httpx", "huggingface_hub", "urllib3"):
        logging.getLogger(talkative).setLevel(logging.ERROR)
