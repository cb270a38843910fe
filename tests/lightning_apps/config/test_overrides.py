from lightning_apps.config.overrides import quote_value, run_name


def test_run_names_are_stable_and_distinct():
    assert run_name([]) == "default"
    assert run_name(["experiment=location", "run.resume=auto", "logger=wandb"]) == "default"
    assert run_name(["seed=1", "model.hidden_size=64"]) == "model.hidden_size=64,seed=1"
    assert run_name(["model.hidden_size=64", "seed=1"]) == run_name(["seed=1", "model.hidden_size=64"])
    assert run_name(["data.countries=[FR,DE]"]) == "data.countries=_FR,DE_"
    long = run_name([f"model.x{number}={number}" for number in range(30)])
    assert len(long) < 100
    assert long != run_name([f"model.x{number}={number}" for number in range(1, 31)])


def test_paths_with_an_equals_sign_need_no_quotes():
    assert quote_value("run=outputs/location/seed=1") == 'run="outputs/location/seed=1"'
    for same in ("seed=1", "data.continents=[EU]", 'run="a=b"', "callbacks.early_stopping={a: 1}", "--cfg=job", "-m"):
        assert quote_value(same) == same
