# Where a version has links: a name is one.
$ echo "image=tiny memory=64M name=$name" > vms/new && id=$(readlink vms/$name) && cat vms/$id/state
defined
$ ls -l vms/$name
lrwxrwxrwx 1 root ... vms/9p2000... -> ...
$ cat vms/$name/spec | cmp - vms/$id/spec && echo the same
the same
$ find . -name state | sort | uniq -d
$ cd vms/$name && pwd -P && cd ../..
/n/9p2000.../vms/...
$ rm vms/$name
rm: cannot remove 'vms/...': Operation not permitted
$ rmdir vms/$id && cat vms/$name/state
cat: vms/...: No such file or directory
