//! Many threads at once.

use super::*;

pub(super) fn commits_of_many_threads_are_all_there(machine: &dyn Machine) {
    let kv = machine.open().unwrap();
    thread::scope(|scope| {
        for worker in 0..8_u64 {
            let kv = &kv;
            scope.spawn(move || {
                for sequence in 1..=100 {
                    let increment = move |state: &dyn Reader, cx: &mut CommitContext<'_>| {
                        let sum = state
                            .get(b"sum")
                            .unwrap()
                            .map_or(0, |sum| u64::from_be_bytes(sum[..].try_into().unwrap()));
                        cx.ops.push(put("sum", (sum + 1).to_be_bytes()));
                        cx.ops.push(append(worker, sequence, "e"));
                        Verdict::Accept
                    };
                    let outcome = submit(&**kv, increment).recv().unwrap();
                    assert!(matches!(outcome, Outcome::Committed { .. }));
                }
            });
        }
    });
    let view = kv.view().unwrap();
    assert_eq!(
        view.get(b"sum").unwrap().unwrap(),
        800_u64.to_be_bytes()[..]
    );
    for worker in 0..8 {
        assert_eq!(sequences(&*view, worker, 1, 999).len(), 100);
    }
    drop(view);
    kv.close().unwrap();
}
