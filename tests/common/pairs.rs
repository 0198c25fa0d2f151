//! What partitions keep, pair by pair, as the documentation says it: plain and slow.

#![allow(unreachable_pub, reason = "a module of several crates")]

/// A density of 1.
pub const ALL: u32 = 1 << 15;

/// A text in partitions. Row i is token `len_kv - len_q + i`.
pub struct Pairs {
    pub causal: bool,
    pub len_q: usize,
    pub len_kv: usize,
    /// Query rows and keys of a block.
    pub kept: [usize; 2],
    /// The first token of each partition.
    pub starts: Vec<usize>,
    pub columns: Vec<usize>,
    pub window: usize,
}

/// The boundary tokens that are kept, if so many may be.
pub fn kept_tokens(tokens: &[usize], most: usize) -> Vec<usize> {
    let kept = tokens.len().min(most);
    (0..kept).map(|i| tokens[i * tokens.len() / kept]).collect()
}

impl Pairs {
    fn partition(&self, token: usize) -> usize {
        self.starts.iter().filter(|&&start| start <= token).count()
    }

    fn token(&self, row: usize) -> usize {
        self.len_kv - self.len_q + row
    }

    fn may_see(&self, row: usize, key: usize) -> bool {
        !self.causal || key <= self.token(row)
    }

    /// The blocks of keys that each block of rows lists.
    pub fn lists(&self, window: usize, reach: usize) -> Vec<Vec<usize>> {
        let mut lists = vec![vec![]; self.len_q.div_ceil(self.kept[0])];
        for row in 0..self.len_q {
            let token = self.token(row);
            for key in (0..self.len_kv).filter(|&key| self.may_see(row, key)) {
                let away = token.abs_diff(key);
                if away <= window || (away <= reach && self.partition(token) == self.partition(key)) {
                    let list = &mut lists[row / self.kept[0]];
                    let block = key / self.kept[1];
                    if !list.contains(&block) {
                        list.push(block);
                    }
                }
            }
        }
        for list in &mut lists {
            list.sort_unstable();
        }
        lists
    }

    /// Pairs that are seen, and those of them in columns alone.
    pub fn pairs(&self, lists: &[Vec<usize>]) -> [u64; 2] {
        let mut pairs = [0; 2];
        for row in 0..self.len_q {
            for key in (0..self.len_kv).filter(|&key| self.may_see(row, key)) {
                let is_listed = lists[row / self.kept[0]].contains(&(key / self.kept[1]));
                let is_column = self.columns.contains(&key);
                pairs[0] += u64::from(is_listed || is_column);
                pairs[1] += u64::from(!is_listed && is_column);
            }
        }
        pairs
    }

    pub fn all_pairs(&self) -> u64 {
        let keys = |row| (0..self.len_kv).filter(|&key| self.may_see(row, key)).count();
        (0..self.len_q).map(|row| keys(row) as u64).sum()
    }

    /// The densest of all patterns in question that is no denser than `target`.
    pub fn densest(&self, target: u32) -> Vec<Vec<usize>> {
        let within = (0..self.len_kv).map(|reach| (self.window, reach));
        let beyond = (0..=self.len_kv).map(|window| (window.max(self.window), self.len_kv));
        let mut best = self.lists(self.window, 0);
        for (window, reach) in within.chain(beyond) {
            let lists = self.lists(window, reach);
            if self.pairs(&lists)[0] * u64::from(ALL) <= self.all_pairs() * u64::from(target) {
                best = lists;
            }
        }
        best
    }
}
