"""What `doctor` is asked about: a model and the data to train it on; no weights are loaded."""

from pathlib import Path

from skip2bench.config.commands import DoctorConfig
from skip2bench.data.files import SUFFIXES
from skip2bench.data.load import load_data
from skip2bench.errors import Skip2BenchError
from skip2bench.io.resources import embedded_checkpoint
from skip2bench.models.base import check_checkpoint, config_by_name, find_checkpoint, load_config
from skip2bench.models.tokenizer import load_tokenizer
from skip2bench.projection.subject import Subject
from skip2bench.train.plan import limit_length


def load_subject(config: DoctorConfig) -> Subject:
    """Find the model and tokenize the data, as a training run would.

    Raises:
        Skip2BenchError: there is no such model, or the data is not good. Data that cannot be
            fetched here is no error; the subject says why it has none.
    """
    folder = find_checkpoint(config.model)
    if folder:
        check_checkpoint(folder)
    model_config = load_config(folder) if folder else config_by_name(config.model)
    training = config.train_config(folder)
    data, problem = None, None
    try:
        tokenizer = load_tokenizer(folder or embedded_checkpoint())
        data = load_data(
            training, tokenizer, limit_length(training, model_config), model_config.name, folder
        )
    except Skip2BenchError as error:
        # no network, or a package that is not installed: other data modules may need neither
        is_file = Path(config.data).suffix in SUFFIXES
        if is_file or not isinstance(error.__cause__, OSError | ImportError):
            raise
        problem = str(error)
    return Subject(
        name=folder.resolve().name if folder else model_config.name,
        model_config=model_config,
        training=training,
        has_tokenizer=folder is not None,
        data=data,
        data_problem=problem,
    )
