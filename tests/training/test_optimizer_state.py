"""What an optimizer keeps: states of this release and of older ones, and writes of others."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from training.stepping import closure, network, no_term, trained

from modfast import ClusterabilityLoss, Clusters, Modularity


@pytest.mark.parametrize("base", ["sgd", "adam", "adamw", torch.optim.RMSprop])
def test_state_dict_resumes_exactly(base: Any) -> None:
    options = {"momentum": 0.9} if base == "sgd" else {}
    clusters = {
        "fc2": Clusters(torch.arange(13) % 3, torch.arange(17) % 3),
        "fc3": Clusters(torch.arange(11) % 3, torch.arange(13) % 3),
    }
    model = network()
    optimizer = Modularity(
        model.named_parameters(), 0.01, layers="fc[23]", clusters=clusters, base=base, **options
    )
    trained(optimizer, closure(model, optimizer, no_term), 5)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)

    resumed = network()
    again = Modularity(
        resumed.named_parameters(), 0.5, layers="fc[23]", n_clusters=2, base=base, **options
    )
    weights, state = torch.load(file, weights_only=True)
    resumed.load_state_dict(weights)
    again.load_state_dict(state)
    twin = copy.deepcopy((model, optimizer))
    for m, o in ((model, optimizer), (resumed, again), twin):
        trained(o, closure(m, o, no_term), 5)
    for p, q, r in zip(model.parameters(), resumed.parameters(), twin[0].parameters(), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(p, r)


def test_goes_on_from_the_base_optimizers_state_dict() -> None:
    ours, theirs = network(torch.float64), network(torch.float64)
    adam = torch.optim.Adam(theirs.parameters(), 0.01)
    trained(adam, closure(theirs, adam, no_term), 5)
    ours.load_state_dict(theirs.state_dict())
    optimizer = Modularity(ours.parameters(), 0.5, 3, alpha=0.0, base="adam")
    optimizer.load_state_dict(copy.deepcopy(adam.state_dict()))
    trained(adam, closure(theirs, adam, no_term), 5)
    trained(optimizer, closure(ours, optimizer, no_term), 5)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
    assert len(optimizer.values) == 2


def test_notices_what_others_write() -> None:
    ours, theirs = network(torch.float64), network(torch.float64)
    optimizer = Modularity(ours.parameters(), 0.01, 3, alpha=5.0)
    expected = torch.optim.SGD(theirs.parameters(), lr=0.01)
    reg = ClusterabilityLoss(theirs, ["fc2", "fc3"], 3, alpha=5.0)
    for step in range(6):
        trained(optimizer, closure(ours, optimizer, no_term), 1)
        trained(expected, closure(theirs, expected, reg), 1)
        for model in (ours, theirs):
            if step == 1:
                model.load_state_dict({k: 2 * v for k, v in model.state_dict().items()})
            if step == 3:
                with torch.no_grad():
                    model.fc2.weight.clamp_(-0.1, 0.1)
            if step == 4:
                model.fc3.weight.data = model.fc3.weight.data * 3
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_alphas_old_key_works_and_warns() -> None:
    ours, theirs = network(torch.float64), network(torch.float64)
    optimizer = Modularity(ours.parameters(), 0.01, 3, alpha=5.0)
    expected = Modularity(theirs.parameters(), 0.01, 3, alpha=2.0)
    (group,) = optimizer.param_groups
    with pytest.warns(
        DeprecationWarning, match=r'group\["cluster_alpha"\] is now group\["alpha"\]'
    ):
        assert group["cluster_alpha"] == 5.0
    for change in (
        lambda: group.__setitem__("cluster_alpha", 2.0),
        lambda: group.update(cluster_alpha=2.0),
    ):
        group["alpha"] = 5.0
        with pytest.warns(DeprecationWarning, match="is now"):
            change()
        assert group["alpha"] == 2.0
    trained(optimizer, closure(ours, optimizer, no_term), 3)
    trained(expected, closure(theirs, expected, no_term), 3)
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    with pytest.warns(DeprecationWarning, match="is now"):
        given = Modularity(
            [{"params": list(ours.parameters()), "cluster_alpha": 7.0}], n_clusters=3
        )
    assert given.param_groups[0]["alpha"] == 7.0


@pytest.mark.parametrize("base", ["sgd", torch.optim.RMSprop])
def test_state_of_an_older_release(base: Any) -> None:
    optimizer = Modularity(network().parameters(), n_clusters=3, alpha=5.0, base=base)
    key = "alpha" if base == "sgd" else "cluster_alpha"
    state = optimizer.state_dict()
    (group,) = state["param_groups"]
    assert type(group) is dict
    assert group[key] == 5.0
    group["cluster_alpha"] = group.pop(key)
    again = Modularity(network().parameters(), n_clusters=3, alpha=1.0, base=base)
    again.load_state_dict(state)
    assert again.param_groups[0][key] == 5.0
    twin = pickle.loads(pickle.dumps(again))
    assert twin.param_groups[0][key] == 5.0
    if base == "sgd":
        with pytest.warns(DeprecationWarning, match="is now"):
            twin.param_groups[0]["cluster_alpha"] = 3.0
        assert twin.param_groups[0]["alpha"] == 3.0
    else:
        # RMSprop's own alpha, the share of the past in its average, is another thing.
        assert twin.param_groups[0]["alpha"] == 0.99
