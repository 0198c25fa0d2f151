"""PyTorch's scaled_dot_product_attention, its flash kernel."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from worker import Unsupported

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


class Peer:
    version = torch.__version__

    def __init__(self, variant, threads):
        dtype, *options = variant.split("-")
        # Or such a row of heads, as those of a group, as rows of one head: what a caller may do by
        # hand.
        self.packed = "packed" in options
        self.dtype = DTYPES[dtype]
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)

    def prepare(self, w, q, k, v):
        gqa = w.heads_q != w.heads_kv
        if self.packed and not (gqa and w.len_q == 1):
            raise Unsupported("for one query of grouped heads only")
        if w.latent and not self.packed:
            raise Unsupported("its other kernels copy K and V for each head")
        q, *_ = (torch.from_numpy(x.copy()).to(self.dtype) for x in (q,))
        caches = [[torch.from_numpy(x.copy()).to(self.dtype) for x in (k, v)] for _ in range(w.copies)]
        if w.latent:
            caches = [[k, k[..., : w.latent]] for k, _ in caches]
        self.shape = *q.shape[:3], w.dim_v
        # The flash kernel wants V as long as K.
        kernels = SDPBackend.MATH if w.latent else SDPBackend.FLASH_ATTENTION
        if self.packed:
            q = q.reshape(w.batch, w.heads_kv, -1, w.dim)
        options = {"is_causal": w.causal, "enable_gqa": gqa and not self.packed}
        mask = w.mask()
        if mask is not None:
            options |= {"is_causal": False, "attn_mask": torch.from_numpy(mask).to(self.dtype)}

        def call(k, v):
            with sdpa_kernel(kernels):
                self.out = scaled_dot_product_attention(q, k, v, **options)

        return [lambda kv=kv: call(*kv) for kv in caches]

    def output(self):
        return self.out.reshape(self.shape).float().numpy()
