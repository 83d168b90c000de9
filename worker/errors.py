"""What ends a session and what ends the process.

    WorkerError
    ├── OutOfMemory           the device has no memory for a batch; half of it may fit
    ├── Rewind                the transaction was aborted; the session goes on from what is committed
    ├── SessionError          the session ends, a new one begins with the loaded model
    │   ├── PartitionsLost             another member has them by now
    │   └── ClientFailed               the consumer or the producer can't go on
    └── ProcessError          the process ends
        ├── SettingsError      exit 2   a setting is wrong
        ├── WeightsError       exit 3   the model can't be had
        ├── DeviceError        exit 4   the device is missing, or can't run the model (any more)
        ├── KafkaSetupError    exit 5   a topic or a right is missing
        │   └── NoBrokerAnswers         at the start
        ├── ThreadDied         exit 6   a prepare thread or the encode thread raised
        ├── DrainTimeout       exit 7   a stop left records unfinished; what was finished was committed
        ├── SessionsFailed     exit 8   sessions keep failing
        └── TooManyRejections  exit 9   more dead letters than the settings allow

The watchdog ends the process with 70 when a thread hangs. A record's fault is none of these: it is a
value, `Rejected`.
"""

EXIT_STALLED = 70


class WorkerError(Exception):
    """The root of all errors that the worker raises."""

    exit_code = 1


class OutOfMemory(WorkerError):
    """The device has no memory for a batch."""


class Rewind(WorkerError):
    """The transaction was aborted; what came since the last checkpoint has to be done again."""


class SessionError(WorkerError):
    """The session can't go on; a new one can."""


class PartitionsLost(SessionError):
    """Partitions were taken away without a chance to settle them."""


class ClientFailed(SessionError):
    """A Kafka client reported an error that it can't recover from."""


class ProcessError(WorkerError):
    """The process has to end."""


class SettingsError(ProcessError):
    """A setting is missing, unknown, malformed or at odds with another."""

    exit_code = 2


class WeightsError(ProcessError):
    """The architecture or its weights can't be loaded."""

    exit_code = 3


class DeviceError(ProcessError):
    """The device is missing, or can't run the model at the precision asked for, or fails at every image."""

    exit_code = 4


class KafkaSetupError(ProcessError):
    """A topic or a right is missing, or a topic takes no record as large as the worker's smallest."""

    exit_code = 5


class NoBrokerAnswers(KafkaSetupError):
    """No broker answers at the addresses that are set."""


class ThreadDied(ProcessError):
    """A thread of the pipeline raised what no record can cause."""

    exit_code = 6


class DrainTimeout(ProcessError):
    """The time to stop ran out before everything taken in was finished."""

    exit_code = 7


class SessionsFailed(ProcessError):
    """One session after the other failed without any progress."""

    exit_code = 8


class TooManyRejections(ProcessError):
    """More records became dead letters than the settings allow."""

    exit_code = 9
