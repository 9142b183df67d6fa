import subprocess
import sys

from tensorboardX.proto.event_pb2 import Event

from mm1_jax.train.logs.summaries import Summaries


def read_events(folder):
    """Reads the events of all files in `folder`; a record is length, checksum, data, checksum."""
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_numbers_lists_and_pictures_are_written(tmp_path, fakes):
    summaries = Summaries(tmp_path, first_step=4)
    summaries.scalars(5, {"loss": 1.5, "expert_load": [[0.25, 0.75]], "name": "not a number"})
    summaries.samples(5, "quiz", [fakes.sample(True), fakes.sample(False)])
    summaries.close()
    values, pictures = {}, {}
    for event in read_events(tmp_path):
        for value in event.summary.value:
            assert event.step == 5
            if value.HasField("image"):
                pictures[value.tag] = value.image
            else:
                values[value.tag] = value.simple_value
    assert values == {"loss": 1.5, "expert_load/0/0": 0.25, "expert_load/0/1": 0.75}
    assert list(pictures) == ["samples/quiz"]
    assert pictures["samples/quiz"].width > 0


def test_samples_without_pictures_write_no_summary(tmp_path, fakes):
    sample = fakes.sample(True)
    sample.image = None
    summaries = Summaries(tmp_path, first_step=0)
    summaries.samples(1, "quiz", [sample])
    summaries.close()
    assert not any(event.summary.value for event in read_events(tmp_path))


def test_torch_is_not_imported_and_stays_importable(tmp_path):
    """tensorboardX would import it, which takes seconds of each launch."""
    code = (
        "import sys, importlib.util\n"
        "from mm1_jax.train.logs.summaries import Summaries\n"
        "Summaries(__import__('pathlib').Path(sys.argv[1]), first_step=0).close()\n"
        "assert 'torch' not in sys.modules\n"
        "import torch"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
