from codeq.studies.expand import Member
from codeq.studies.study import make_study
from codeq.studies.tasks import wandb_group


def test_members_share_a_group_and_tags_unless_the_user_has_chosen(monkeypatch):
    for name in ("WANDB_RUN_GROUP", "WANDB_TAGS"):
        monkeypatch.delenv(name, raising=False)
    study = make_study({"name": "lambda-dz", "base": "b.yaml"})
    plain, variant = Member("seed=0", None, {}, {}), Member("l2,seed=0", "l2", {}, {})
    assert wandb_group(study, plain) == {"WANDB_RUN_GROUP": "lambda-dz", "WANDB_TAGS": "lambda-dz"}
    assert wandb_group(study, variant) == {"WANDB_RUN_GROUP": "lambda-dz", "WANDB_TAGS": "lambda-dz,l2"}
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    assert wandb_group(study, variant) == {"WANDB_TAGS": "lambda-dz,l2"}
