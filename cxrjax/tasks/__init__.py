"""What `config.task` can name: each module has `run(config, workdir)`."""
