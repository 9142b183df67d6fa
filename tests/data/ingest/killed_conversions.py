"""Kills a conversion at every possible moment, finishes it, and compares the outputs.

    python killed_conversions.py FOLDER

The moments are before and after each rename of a file, and after each write of a record. Prints
their number. Runs as a separate process, because it forks, which is not safe after JAX has started.
"""

import os
import shutil
import signal
import sys
from pathlib import Path
from unittest import mock

from foreign_formats import Numbered, contents, write_numbers

from mm1_jax.data.ingest.convert import Conversion, convert
from mm1_jax.data.ingest.filters import FrequentImages
from mm1_jax.data.record_files import ShardWriter


def convert_in_child(conversion: Conversion, moment: int | None = None) -> bool:
    """Returns whether the conversion finished before the kill."""
    if (child := os.fork()) == 0:
        moments = iter(range(1, sys.maxsize))

        def pass_moment() -> None:
            if next(moments) == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        replace, write = Path.replace, ShardWriter.write

        def watched_replace(path: Path, target: Path) -> Path:
            pass_moment()
            result = replace(path, target)
            pass_moment()
            return result

        def watched_write(writer: ShardWriter, record) -> None:
            write(writer, record)
            pass_moment()

        with (
            mock.patch.object(Path, "replace", watched_replace),
            mock.patch.object(ShardWriter, "write", watched_write),
        ):
            convert(conversion)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFEXITED(status) or os.WTERMSIG(status) == signal.SIGKILL, status
    assert not (os.WIFEXITED(status) and os.WEXITSTATUS(status)), status
    return os.WIFEXITED(status)


def main(folder: Path) -> None:
    source = write_numbers(folder / "source", [7, 0, 4])
    output = folder / "output"
    conversion = Conversion(
        Numbered(bad_every=3),
        (source,),
        output,
        filters=(FrequentImages.default_config(),),
        max_shard_bytes=4000,
    )
    assert convert_in_child(conversion)
    expected = contents(output)
    moment = 0
    while True:
        moment += 1
        shutil.rmtree(output)
        if convert_in_child(conversion, moment):
            break
        assert convert_in_child(conversion)
        assert contents(output) == expected, moment
    print(moment - 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
