"""Times GPTQ and SparseGPT on a square layer in PyTorch, as the authors' code does it, beside `cargo bench --bench solve`.

setup:  python3 -m venv peers-venv && peers-venv/bin/pip install torch
usage:  peers-venv/bin/python solve_torch.py [THREADS] [SIZE ...]

Both follow the published algorithms: damped Hessian, inverse, upper Cholesky factor, blocks of 128 columns, column by
column inside. GPTQ: 4 bits, groups of 128, asymmetric. SparseGPT: half of the weights go, by blocks of 128.
Prints one JSON line per method and size: seconds of three runs.
"""
import json, sys, time, torch

torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
sizes = [int(s) for s in sys.argv[2:]] or [2048, 4096]
BLOCK = 128


def factor(h):
    n = h.shape[0]
    h = h.clone()
    h.diagonal().add_(0.01 * h.diagonal().mean())
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)


def gptq(w, h, bits=4, group=128):
    w, n = w.clone(), w.shape[1]
    u = factor(h)
    q = torch.zeros_like(w)
    top = 2**bits - 1
    for a in range(0, n, BLOCK):
        b = min(a + BLOCK, n)
        block, errors = w[:, a:b].clone(), torch.zeros(w.shape[0], b - a)
        ub = u[a:b, a:b]
        for i in range(b - a):
            if (a + i) % group == 0:
                part = w[:, a + i : a + i + group]
                low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
                scale = (high - low) / top
                zero = torch.round(-low / scale)
            column = block[:, i]
            code = torch.clamp(torch.round(column / scale) + zero, 0, top)
            q[:, a + i] = scale * (code - zero)
            error = (column - q[:, a + i]) / ub[i, i]
            block[:, i:] -= error.unsqueeze(1) * ub[i, i:].unsqueeze(0)
            errors[:, i] = error
        w[:, b:] -= errors @ u[a:b, b:]
    return q


def sparsegpt(w, h, sparsity=0.5):
    w, n = w.clone(), w.shape[1]
    u = factor(h)
    for a in range(0, n, BLOCK):
        b = min(a + BLOCK, n)
        block, errors = w[:, a:b].clone(), torch.zeros(w.shape[0], b - a)
        out, ub = torch.zeros_like(block), u[a:b, a:b]
        score = block**2 / ub.diagonal().reshape(1, -1) ** 2
        mask = score <= score.flatten().sort()[0][int(score.numel() * sparsity)]
        for i in range(b - a):
            column = block[:, i]
            kept = column.clone()
            kept[mask[:, i]] = 0
            out[:, i] = kept
            error = (column - kept) / ub[i, i]
            block[:, i:] -= error.unsqueeze(1) * ub[i, i:].unsqueeze(0)
            errors[:, i] = error
        w[:, a:b] = out
        w[:, b:] -= errors @ u[a:b, b:]
    return w


torch.manual_seed(1)
for n in sizes:
    x = torch.randn(2 * n, n)
    for j in range(1, n):
        x[:, j] = 0.6 * x[:, j - 1] + 0.8 * x[:, j]
    h, w = x.T @ x / (2 * n), torch.randn(n, n)
    for name, method in (("gptq", gptq), ("sparsegpt", sparsegpt)):
        runs = []
        with torch.no_grad():
            for _ in range(3):
                begin = time.perf_counter()
                method(w, h)
                runs.append(round(time.perf_counter() - begin, 4))
        print(json.dumps(dict(method=name, size=n, threads=torch.get_num_threads(), seconds=runs)), flush=True)
