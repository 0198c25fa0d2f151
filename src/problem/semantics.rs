//! What is to be computed, apart from the tensors.

/// Which keys a query at position p sees: those from `p - left` to `p + right`, both inclusive;
/// `None` is no limit. Causal attention is `right = Some(0)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Keys before the query's own position.
    pub left: Option<u64>,
    /// Keys behind it.
    pub right: Option<u64>,
}

/// Where the queries stand among the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// Query row 0 is at this key position: 0, the number of keys before it, or any other; rows
    /// that are then at no key at all are none the worse for it.
    At(i64),
    /// The last query row of each sequence is on its last key.
    End,
}

/// How far queries and probabilities may be rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Accuracy {
    /// To 8 bits.
    Fast,
    /// By no more than storing K and V in their types rounds these: to bfloat16 where K and V are
    /// bfloat16, to 16-bit integers where they are 8-bit integers.
    #[default]
    AsStored,
    /// Not at all, except to 16-bit integers where K and V are 8-bit integers.
    Precise,
}

impl Position {
    /// What is wrong with it for `len_q` query rows: their positions, and the one behind them, are
    /// 64-bit numbers.
    pub(super) fn check(self, len_q: usize) -> Result<(), &'static str> {
        match self {
            Position::At(position) if position.checked_add_unsigned(len_q as u64).is_none() => {
                Err("no such position of the last query row, len_q")
            }
            _ => Ok(()),
        }
    }
}

/// Everything about a problem that is not a tensor.
#[derive(Clone, Copy, Debug)]
pub struct Semantics {
    /// Multiplied to every dot product, usually 1/sqrt(dim).
    pub softmax_scale: f32,
    /// Key position of query row 0.
    pub q_pos: Position,
    /// Visible keys around a query's position.
    pub window: Window,
    /// How far queries and probabilities may be rounded.
    pub accuracy: Accuracy,
    /// So many keys, from the first that is seen on, are not hidden by the left end of the window.
    pub prefix_keys: usize,
    /// Query rows per tile, 0 = automatic.
    pub block_q: usize,
    /// Keys per tile, 0 = automatic.
    pub block_kv: usize,
}

impl Semantics {
    /// 1/sqrt(dim), rounded once.
    pub fn usual_scale(dim: usize) -> f32 {
        (1.0 / (dim as f64).sqrt()) as f32
    }

    /// Full attention with the given scale.
    pub fn with_scale(softmax_scale: f32) -> Semantics {
        Semantics {
            softmax_scale,
            q_pos: Position::At(0),
            window: Window::default(),
            prefix_keys: 0,
            accuracy: Accuracy::default(),
            block_q: 0,
            block_kv: 0,
        }
    }

    /// Query i sees key j iff j <= i + (len_kv - len_q): the last query is on the last key.
    pub fn causal(self) -> Semantics {
        Semantics { q_pos: Position::End, window: Window { left: None, right: Some(0) }, ..self }
    }
}
