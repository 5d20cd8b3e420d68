<<<<<<< HEAD
//! The `tollgate` command.

fn main() {}
=======
fn main(){}
>>>>>>> admin
