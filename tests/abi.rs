//! The structures that C and Rust share have the committed layout, c_tests/abi.txt, which C
//! compilers (c_tests/api/abi.c) and foreign function interfaces (scripts/check_abi.py) are held
//! to, too.

#![cfg(target_pointer_width = "64")]

use std::fs;
use std::mem::offset_of;
use std::path::Path;

use flash_attention::capi::attention::fa_attention;
use flash_attention::capi::config::fa_config;
use flash_attention::capi::fixed::fa_q15_config;
use flash_attention::capi::plan::fa_plan;
use flash_attention::capi::pool::fa_pool;
use flash_attention::capi::sparse::{fa_sparse_config, fa_sparse_lists};
use flash_attention::capi::tensor::{fa_quant, fa_tensor};

/// The size of what a function finds in a structure.
fn size_of_found<S, F>(_: fn(&S) -> &F) -> usize {
    size_of::<F>()
}

/// Lines of the table for structures and their fields.
macro_rules! layout {
    ($($structure:ident: $($field:ident)*;)*) => {{
        let mut lines = Vec::new();
        $(
            let name = stringify!($structure);
            lines.push(format!("{name} - 0 {}", size_of::<$structure>()));
            $(
                let size = size_of_found(|structure: &$structure| &structure.$field);
                lines.push(format!("{name} {} {} {size}", stringify!($field), offset_of!($structure, $field)));
            )*
            // A field that is left out does not compile.
            let _ = |structure: $structure| {
                let $structure { $($field: _),* } = structure;
            };
        )*
        lines
    }};
}

#[test]
fn structures_have_the_committed_layout() {
    let ours = layout! {
        fa_quant: scale zero stride group_tokens group_dims;
        fa_tensor: data stride dtype stride_dim quant;
        fa_attention: struct_size flags reserved0 batch heads_q heads_kv len_q len_kv dim_qk dim_v q k v
            o scale softcap q_pos window_left window_right mask alibi_slopes alibi_batch_stride sinks
            block_mask block_mask_stride block_mask_q block_mask_kv cu_len_q cu_len_kv kv_lens
            block_table block_table_start table_stride page_size num_pages lse lse_stride block_q
            block_kv
            q_positions kv_starts prefix_keys spans span_starts weights weight_heads num_weight_heads
            weight_rows num_weight_rows kept_start kept_blocks kept_stride kept_heads kept_q kept_kv
            table_head_stride column_start columns column_stride column_heads q_bytes k_bytes v_bytes
            o_bytes mask_bytes lse_bytes weights_bytes;
        fa_config: block_size_q block_size_kv head_dim causal softmax_scale num_threads reserved;
        fa_q15_config: struct_size head_dim scale_mantissa scale_shift causal num_threads;
        fa_plan: struct_size isa compute path threads threads_awake k_staged v_staged reserved0
            tile_heads tile_kv_heads tile_rows tile_keys work_items key_ranges thread_bytes
            workspace_bytes;
        fa_pool: struct_size ctx width parallel_for;
        fa_sparse_config: struct_size len_q len_kv kept_q kept_kv partitions num_partitions
            boundary_tokens num_boundary_tokens max_edges window causal schedule coherence
            coherence_low coherence_high concentration min_density max_density;
        fa_sparse_lists: struct_size kept_start kept_blocks column_start columns num_starts
            num_blocks num_columns room pairs column_pairs all_pairs window reach density time_saved
            target_density dense;
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("c_tests/abi.txt");
    let table = fs::read_to_string(path).expect("the table can be read");
    let table: Vec<&str> = table.lines().filter(|line| line.starts_with("fa_")).collect();
    assert_eq!(ours, table);
}
