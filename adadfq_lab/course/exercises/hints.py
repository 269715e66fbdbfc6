"""Three hints an exercise, shown one after the other: a nudge, the formula, the code."""

HINTS: dict[str, tuple[str, str, str]] = {
    "agreement": (
        "Which class does a network say? The one with its largest logit, sample by sample.",
        "The share of the samples n with argmax_c z_p(n, c) = argmax_c z_q(n, c).",
        "(z_p.argmax(dim=-1) == z_q.argmax(dim=-1)).float().mean()",
    ),
    "p_ds": (
        "Subtract first, then turn each row into probabilities.",
        "p_ds(c) = exp(z_p(c) - z_q(c)) / sum over all classes c' of exp(z_p(c') - z_q(c')); classes are the last dimension.",
        "torch.softmax(z_p - z_q, dim=-1)",
    ),
    "entropy": (
        "One number a row. What does your formula give for p = 0?",
        "H = -sum_c p(c) log p(c), where a term with p(c) = 0 counts as 0.",
        "-(p * torch.where(p == 0, 1, p).log()).sum(dim=-1)",
    ),
    "normalized_entropy": (
        "The smallest of the batch becomes 0, and log C becomes 1.",
        "H' = (H - low) / (high - low) with low the minimum of this batch and high = log C.",
        "(H - H.min()) / (math.log(num_classes) - H.min())",
    ),
    "fitting_risk": (
        "Small H' is large disagreement: too hard for Q. Large H' is agreement: nothing to learn. On a bound is outside.",
        "[H' >= lambda_u] - [H' <= lambda_l], each bracket 1 if true and 0 if not.",
        "(h_prime >= bounds.upper).long() - (h_prime <= bounds.lower).long()",
    ),
    "channel_range": (
        "Make one row of each output channel; a range may well lie on one side of 0.",
        "low(o) = min over everything but o of w(o, ...), and high(o) the maximum.",
        "weight.flatten(1).amin(dim=1), weight.flatten(1).amax(dim=1)",
    ),
    "qparams": (
        "2^n codes have 2^n - 1 steps between them. Which code stands for 0?",
        "scale = (high - low) / (2^n - 1); zero_point = -2^(n-1) - round(low / scale), wherever 0 lies.",
        "scale = (high - low) / (2**bits - 1); return scale, -(2 ** (bits - 1)) - (low / scale).round()",
    ),
    "codes": (
        "Divide, shift, round; then there is a smallest and a largest code.",
        "q = clamp(round(x / scale + zero_point), -2^(n-1), 2^(n-1) - 1), as int32.",
        "(x / scale + zero_point).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).to(torch.int32)",
    ),
    "round_ste": (
        "Write round(x) as x plus something; which of the two should have a gradient?",
        "round(x) = x + (round(x) - x), the bracket held constant.",
        "x + (x.round() - x).detach()",
    ),
    "channel_statistics": (
        "One number a channel: average over everything else, samples included.",
        "mu_c = mean of u over n, h, w; sigma_c = mean of (u - mu_c)^2, divided by N H W, not by one less.",
        "u.mean(dim=(0, 2, 3)), u.var(dim=(0, 2, 3), unbiased=False)",
    ),
    "loss_bns": (
        "First one number a layer, then their mean.",
        "For a layer: mean over channels of (mean - running_mean)^2, plus that of (var - running_var)^2.",
        "torch.stack([F.mse_loss(s.mean, s.running_mean) + F.mse_loss(s.var, s.running_var) for s in statistics]).mean()",
    ),
    "conditioned": (
        "Each sample needs the row of its own label.",
        "out(i) = z(i) * table(y(i)), entry by entry.",
        "z * table[y]",
    ),
    "gdfq_loss": (
        "Two terms: what P says of the class asked for, and a tenth of L_BNS.",
        "CE(z_p, y) + 0.1 L_BNS; the cross-entropy takes logits.",
        "F.cross_entropy(z_p, y) + 0.1 * bns",
    ),
    "game_value": (
        "How much has each sample to teach? Then take the expectation.",
        "E[1 - H'], the mean over the batch.",
        "(1 - h_prime).mean()",
    ),
    "gains": (
        "What does a step gain? Disagreement after it minus disagreement before it; each step has its own before.",
        "Disagreement is log C - mean H, so Delta_G = mean(before) - mean(after_g); Delta_Q = mean(after_g) - mean(after_q).",
        "before.mean() - after_g.mean(), after_g.mean() - after_q.mean()",
    ),
    "is_equilibrium": (
        "No move of G may raise the value, none of Q may lower it. Equal is allowed, and a list may be empty.",
        "v <= value for all v in values_g, and value <= v for all v in values_q.",
        "all(v <= value for v in values_g) and all(value <= v for v in values_q)",
    ),
    "student_step": (
        "The decay joins the gradient first; then the velocity; then the step looks ahead along the new velocity.",
        "g = gradient + decay * w; v' = momentum * v + g; w' = w - rate * (g + momentum * v').",
        "g = gradient + decay * weight; v = momentum * velocity + g; return weight - rate * (g + momentum * v), v",
    ),
    "loss_ds": (
        "Which logits have p_ds as their softmax?",
        "CE(z_p - z_q, y), averaged over the batch.",
        "F.cross_entropy(z_p - z_q, y)",
    ),
    "loss_as": (
        "As L_ds, but both are to see class y.",
        "CE(z_p + z_q, y), averaged over the batch.",
        "F.cross_entropy(z_p + z_q, y)",
    ),
    "loss_balance": (
        "Two losses and two weights.",
        "L_bal = 0.2 L_ds + 0.1 L_as.",
        "0.2 * lab.loss_ds(z_p, z_q, y) + 0.1 * lab.loss_as(z_p, z_q, y)",
    ),
    "hinge": (
        "How far is each sample from the band? Within, not at all.",
        "max(lambda_l - H', 0) + max(H' - lambda_u, 0), for each sample.",
        "torch.relu(bounds.lower - h_prime) + torch.relu(h_prime - bounds.upper)",
    ),
    "hinge_slope": (
        "Below the band the hinge falls as H' rises; above, it rises; elsewhere it is flat. And it is a mean over N.",
        "([H' > lambda_u] - [H' < lambda_l]) / N; on a bound 0, as relu has it.",
        "((h_prime > bounds.upper).float() - (h_prime < bounds.lower).float()) / len(h_prime)",
    ),
    "generator_objective": (
        "Three summands; only the first has one number a sample.",
        "mean of hinge(H') + L_bal + L_BNS.",
        "lab.hinge(h_prime, bounds).mean() + balance + bns",
    ),
    "play_round": (
        "G makes images; P and Q look at them; each player has a loss and steps on it. Q learns from the images as they were.",
        "Minimise Eq. (12) over G. Then minimise E[1 - H'] over Q, on x and z_p detached, so that nothing reaches G.",
        "x = G(z, y); z_p, statistics = P(x); ...; optimizer_g.zero_grad(); loss_g.backward(); optimizer_g.step(); "
        "then z_q = Q(x.detach()); ...; optimizer_q.zero_grad(); loss_q.backward(); optimizer_q.step()",
    ),
    "estimation_error": (
        "The class's capacity over a power of the number of samples.",
        "|F|_C / n^alpha, with the constant 1.",
        "capacity / n**rate",
    ),
    "error_bound": (
        "Q's distance from P, and P's from the labels: two errors each.",
        "c_q / n^rate_q + eps_q + c_p / n^rate_p + eps_p.",
        "c_q / n**rate_q + c_p / n**rate_p + eps_q + eps_p",
    ),
    "samples_needed": (
        "Solve for n; do not round.",
        "n^alpha = |F|_C / target, so n is that to the power 1 / alpha.",
        "(capacity / target) ** (1 / rate)",
    ),
    "centred_mse": (
        "A constant added to all logits must not count: subtract the mean over classes.",
        "v = 1 / (2C) sum_c (d_c - mean d)^2 with d = z_p - z_q.",
        "0.5 * (z_p - z_q).var(dim=1, correction=0)",
    ),
    "difference_of_means": (
        "Variances of means add, though the means are subtracted.",
        "half = t sqrt(s_a^2 / n_a + s_b^2 / n_b), each s^2 divided by its n - 1.",
        "np.mean(a) - np.mean(b), t * np.sqrt(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b))",
    ),
    "generator_loss": (
        "Three terms, each one number with a gradient. The hinge is taken of each sample, then averaged.",
        "CE(z_p, y); 0.1 L_BNS, reduced as r.fidelity says; E[max(1 - v, 0)].",
        '{"label": F.cross_entropy(r.teacher_logits, r.labels), "bns": 0.1 * lab.loss_bns(r.statistics, '
        'reduction=r.fidelity.bns_reduction), "apart": torch.relu(1 - centred_mse(r.teacher_logits, r.student_logits)).mean()}',
    ),
    "student_loss": (
        "Q follows P on every image; there is no hinge and no label.",
        "E[v], the mean over the batch of half the variance over classes.",
        '{"match": centred_mse(r.teacher_logits, r.student_logits).mean()}',
    ),
    "counts": (
        "Who draws in the warm-up, and who steps?",
        "rounds * batch images; rounds - warmup steps.",
        "rounds * batch, rounds - warmup",
    ),
    "total_seconds": (
        "Two phases, each at its own pace. After which rounds is there a look? In the warm-up there is none.",
        "warmup * warm_round + (rounds - warmup) * play_round + look for each multiple of `every` in warmup + 1, ..., rounds.",
        "warmup * warm_round + (rounds - warmup) * play_round + (rounds // every - warmup // every) * look",
    ),
    "state_megabytes": (
        "For each weight: itself, its gradient, and what the optimizer remembers.",
        "Four numbers a weight of G (Adam keeps two), three of Q (SGD keeps one); 4 bytes each; an MB has 2^20.",
        "4 * (4 * generator + 3 * student) / 2**20",
    ),
    "fold": (
        "Write the batch norm as a u + b first. A variance may be 0: then 1e-5 is all there is under the root.",
        "a = gamma / sqrt(var + 1e-5), b = beta - a mean; the new scale is a times the old one.",
        "a = gamma / (var + 1e-5).sqrt(); return scale * a, beta - mean * a",
    ),
    "integer_conv": (
        "Subtract before you pad: padding adds the number 0.",
        "conv(q_x - zero_x, q_w - zero_w), with zero_w along the output channels.",
        "F.conv2d(q_x - zero_x, q_w - zero_w.view(-1, 1, 1, 1), padding=1)",
    ),
    "requantize": (
        "Scale and bias belong to a channel. The ReLU is one end of the clamp.",
        "clamp(round((acc * scale + bias) / step), 0, 2^n - 1), as int32.",
        "((acc * scale.view(-1, 1, 1) + bias.view(-1, 1, 1)) / step).round().clamp(0, 2**bits - 1).to(torch.int32)",
    ),
    "pack_bits": (
        "Make all numbers positive, take their digits apart, join eight digits to a byte.",
        "digit k of a number d is (d >> k) & 1, from k = n - 1 down to 0; a byte is the sum of its digits << 7, 6, ..., 0.",
        "ones = ((codes.flatten().int() + 2 ** (bits - 1))[:, None] >> torch.arange(bits - 1, -1, -1) & 1).flatten(); "
        "(F.pad(ones, (0, -len(ones) % 8)).view(-1, 8) << torch.arange(7, -1, -1)).sum(1).to(torch.uint8)",
    ),
}
