//! Few query rows on many keys: how the work is cut among threads, and lengths beyond 2^16 and 10^6.

mod common;

use common::{Inputs, Size, kernels, largest, max_error};
use flash_attention::band::Shares;
use flash_attention::dtype::Dtype;
use flash_attention::kernel::{Kernel, Path};
use flash_attention::work::Work;
