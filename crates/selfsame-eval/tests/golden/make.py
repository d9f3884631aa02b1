"""Writes the golden files of this folder: what scikit-learn and PyTorch give for small inputs.

Run:  python make.py
The inputs are in the files too, so the Rust tests draw nothing themselves.
Versions used are in versions.json.  Every feature is an f32 value; scikit-learn gets it as f64.
"""

import json
import pathlib
import platform
import warnings

import numpy as np
import scipy
import sklearn
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import classification_report, mean_absolute_error, r2_score
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

HERE = pathlib.Path(__file__).parent
warnings.filterwarnings("ignore", category=UserWarning)


def write(name, value):
    (HERE / name).write_text(json.dumps(value, allow_nan=False) + "\n")


def blobs(rng, n, d, classes, spread):
    """Rows around one random centre per class, rounded so that the files stay small; exact in f32."""
    centres = rng.normal(size=(classes, d))
    labels = rng.integers(classes, size=n)
    xs = centres[labels] + spread * rng.normal(size=(n, d))
    return (np.round(xs * 256) / 256).astype(np.float64), labels


def flat(xs):
    return [float(x) for x in np.asarray(xs).ravel()]


def ints(xs):
    return [int(x) for x in np.asarray(xs).ravel()]


def knn():
    rng = np.random.default_rng(0)
    xs, labels = blobs(rng, 170, 6, 5, 1.3)
    values = np.round(20 + 60 * rng.random(120), 1)
    bank, queries = xs[:120], xs[120:]
    ks = [1, 5, 20, 120]
    votes = {"weighted": lambda d: np.exp((1 - d) / 0.07), "majority": "uniform"}
    out = {"d": 6, "bank": flat(bank), "labels": ints(labels[:120]), "values": flat(values),
           "queries": flat(queries), "ks": ks, "classes": {}, "numbers": {}, "leave_one_out": {}}
    for vote, weights in votes.items():
        fit = lambda kind, k, y, x=bank: kind(k, metric="cosine", weights=weights).fit(x, y)
        out["classes"][vote] = [ints(fit(KNeighborsClassifier, k, labels[:120]).predict(queries)) for k in ks]
        out["numbers"][vote] = [flat(fit(KNeighborsRegressor, k, values).predict(queries)) for k in ks]
        out["leave_one_out"][vote] = [
            [int(fit(KNeighborsClassifier, k, np.delete(labels[:120], i), np.delete(bank, i, 0)).predict(bank[i:i + 1])[0])
             for i in range(120)] for k in ks[:3]]
    write("knn.json", out)


def logistic():
    rng = np.random.default_rng(1)
    out = []
    for classes, n, d in [(2, 80, 4), (3, 90, 5), (6, 200, 8)]:
        xs, labels = blobs(rng, n, d, classes, 1.5)
        fits = []
        for c in [0.01, 1.0, 100.0]:
            for tol in [1e-4, 1e-8]:
                model = LogisticRegression(C=c, tol=tol, max_iter=1000).fit(xs, labels)
                fits.append({"c": c, "tol": tol, "coef": flat(model.coef_), "intercept": flat(model.intercept_),
                             "iterations": int(model.n_iter_[0]), "predictions": ints(model.predict(xs)),
                             "probabilities": flat(model.predict_proba(xs[:10]))})
        out.append({"d": d, "xs": flat(xs), "labels": ints(labels), "fits": fits})
    write("logistic.json", out)


def ridge():
    rng = np.random.default_rng(2)
    out = []
    for n, d in [(60, 5), (12, 20)]:
        xs, _ = blobs(rng, n, d, 3, 1.0)
        values = np.round(40 + 5 * xs[:, 0] - 3 * xs[:, 1] + 4 * rng.normal(size=n), 2)
        for alpha in [0.1, 10.0]:
            model = Ridge(alpha=alpha).fit(xs, values)
            predictions = model.predict(xs)
            out.append({"d": d, "alpha": alpha, "xs": flat(xs), "values": flat(values), "coef": flat(model.coef_),
                        "intercept": float(model.intercept_), "predictions": flat(predictions),
                        "mae": float(mean_absolute_error(values, predictions)),
                        "r2": float(r2_score(values, predictions))})
    write("ridge.json", out)


def pca():
    """More rows than columns and fewer; spreads that fall by a factor, so that each component is well defined."""
    rng = np.random.default_rng(5)
    out = []
    for n, d, k in [(60, 8, 3), (20, 30, 5), (12, 3, 3)]:
        axes = np.linalg.qr(rng.normal(size=(d, d)))[0]
        xs = rng.normal(size=(n, d)) * 4.0 * 0.7 ** np.arange(d) @ axes + 3 * rng.normal(size=d)
        xs = (np.round(xs * 256) / 256).astype(np.float64)
        model = PCA(k, svd_solver="full").fit(xs)
        out.append({"d": d, "k": k, "xs": flat(xs), "mean": flat(model.mean_), "components": flat(model.components_),
                    "variances": flat(model.explained_variance_), "shares": flat(model.explained_variance_ratio_),
                    "places": flat(model.transform(xs))})
    write("pca.json", out)


def probe():
    """torch.optim.SGD + CosineAnnealingLR on nn.Linear, batches in the order given, last one incomplete."""
    rng = np.random.default_rng(3)
    torch.manual_seed(0)
    d, classes, n, epochs = 7, 4, 50, 5
    xs, labels = blobs(rng, n, d, classes, 1.0)
    out = []
    for lr, decay, batch in [(0.01, 5e-4, 32), (0.3, 0.0, 8), (0.1, 0.05, 16)]:
        layer = torch.nn.Linear(d, classes)
        case = {"d": d, "classes": classes, "lr": lr, "weight_decay": decay, "batch_size": batch, "xs": flat(xs),
                "labels": ints(labels), "start_weight": flat(layer.weight.detach()),
                "start_bias": flat(layer.bias.detach()), "orders": [], "lrs": [], "losses": []}
        optimizer = torch.optim.SGD(layer.parameters(), lr=lr, momentum=0.9, weight_decay=decay)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        inputs, targets = torch.tensor(xs, dtype=torch.float32), torch.tensor(labels)
        for _ in range(epochs):
            order = rng.permutation(n)
            case["orders"].append(ints(order))
            case["lrs"].append(float(optimizer.param_groups[0]["lr"]))
            total = 0.0
            for at in range(0, n, batch):
                rows = order[at:at + batch]
                loss = torch.nn.functional.cross_entropy(layer(inputs[rows]), targets[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += float(loss) * len(rows)
            case["losses"].append(total / n)
            scheduler.step()
        case["weight"], case["bias"] = flat(layer.weight.detach()), flat(layer.bias.detach())
        case["predictions"] = ints(layer(inputs).argmax(1))
        out.append(case)
    write("probe.json", out)


def report():
    rng = np.random.default_rng(4)
    out = []

    def case(truth, predicted, names, labels=None, digits=2, zero_division=0):
        shown = labels if labels is not None else sorted(set(truth) | set(predicted))
        text = classification_report(truth, predicted, labels=labels, target_names=[names[i] for i in shown],
                                     digits=digits, zero_division=zero_division)
        out.append({"truth": ints(truth), "predicted": ints(predicted), "names": names, "labels": labels,
                    "digits": digits, "zero_division": {0: "zero", 1: "one"}.get(zero_division, "nan"), "text": text})

    two = ["f", "m"]
    case([0, 0, 1, 1, 1], [0, 1, 1, 1, 0], two)
    case([0] * 8 + [1] * 8, [0] * 5 + [1] * 3 + [1] * 5 + [0] * 3, two)  # 0.625: halves round to even
    case([0] * 8 + [1] * 8, [0] * 1 + [1] * 7 + [1] * 3 + [0] * 5, two)
    case([0, 0, 0], [0, 0, 0], two)  # one class only
    case([0, 0, 0], [0, 0, 0], two, labels=[0, 1])  # a class that does not occur
    three = ["cat", "dog", "a rather long class name"]
    truth, predicted = [0, 1, 2, 2, 2, 1], [0, 0, 2, 2, 0, 0]  # 1 is never predicted
    for zero_division in [0, 1, np.nan]:
        case(truth, predicted, three, zero_division=zero_division)
        case(truth, predicted, three, labels=[1, 2], zero_division=zero_division)  # micro avg
        case([0, 0, 1], [0, 1, 1], three, labels=[2], zero_division=zero_division)  # nothing at all in it
        case([0, 0], [1, 1], three, labels=[2, 1], zero_division=zero_division)  # no support, nothing right: supports as floats
    case([0, 0, 1], [1, 1, 0], two)  # nothing right
    for digits in [0, 1, 4, 14]:
        case(truth, predicted, three, digits=digits)
    case(truth, predicted, ["größer", "名前", "é"])
    case(truth, predicted, three, labels=[2, 0, 1])  # another order, all classes
    for classes, n in [(9, 64), (30, 400), (150, 3000), (300, 2000)]:  # numpy's order of summation
        truth = rng.integers(classes, size=n)
        predicted = np.where(rng.random(n) < 0.6, truth, rng.integers(classes, size=n))
        case(ints(truth), ints(predicted), [f"n{i:04}" for i in range(classes)], digits=15)
    write("report.json", out)


if __name__ == "__main__":
    knn()
    logistic()
    ridge()
    pca()
    probe()
    report()
    write("versions.json", {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__,
                            "scikit-learn": sklearn.__version__, "torch": torch.__version__.split("+")[0]})
