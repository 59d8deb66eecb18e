"""Tasks that `config.task` names: each module has `run(config, workdir)`."""
