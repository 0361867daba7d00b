# 9P2000. A name is no link: a walk to it ends in the object, and listings have the number alone.
$ echo "image=tiny memory=64M name=$name" > vms/new && cat vms/$name/state
defined
$ ls vms | grep -c $name
0
$ id=$(ls vms | grep -x '[0-9]*' | sort -n | tail -n 1); cat vms/$name/spec | cmp - vms/$id/spec && echo the same
the same
# There are no errnos: what is refused is so with a sentence, which Linux takes for error 526; `err` shows it.
$ mkdir vms/mine
mkdir: cannot create directory 'vms/mine': Unknown error 526
$ rm vms/$id/ctl
rm: cannot remove 'vms/.../ctl': Unknown error 526
$ tail -n 2 err
...no permission for mkdir 'mine': to make one, write attributes to /vms/new
...no permission to rm 'ctl': it belongs to its object; rmdir deletes the object
$ rmdir vms/$name && cat vms/$id/state
cat: vms/...: No such file or directory
