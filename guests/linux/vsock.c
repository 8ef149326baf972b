/* vsock send PORT TEXT: connects to the host, sends TEXT, says that this was all, prints the answer that comes then.
   vsock echo PORT: accepts one connection and sends back what comes, until its end.
   vsock store PORT: accepts one connection, and sends back what came when it has ended. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

static int fail(const char *what) {
    perror(what);
    return 1;
}

static int send_all(int peer, const char *from, size_t size) {
    for (ssize_t part; size; size -= (size_t)part, from += part) {
        part = write(peer, from, size);
        if (part < 0)
            return 1;
    }
    return 0;
}

int main(int argc, char **argv) {
    struct sockaddr_vm address = {.svm_family = AF_VSOCK};
    static char buffer[65536], kept[4 << 20];
    ssize_t count;
    size_t total = 0;
    int server, peer;

    if (argc < 3)
        return 2;
    address.svm_port = (unsigned)strtoul(argv[2], NULL, 10);
    server = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (server < 0)
        return fail("socket");
    if (argc > 3) {
        address.svm_cid = VMADDR_CID_HOST;
        if (connect(server, (struct sockaddr *)&address, sizeof address))
            return fail("connect");
        if (write(server, argv[3], strlen(argv[3])) < 0 || shutdown(server, SHUT_WR))
            return fail("write");
        while ((count = read(server, buffer, sizeof buffer)) > 0)
            fwrite(buffer, 1, (size_t)count, stdout);
        return count < 0 ? fail("read") : 0;
    }
    address.svm_cid = VMADDR_CID_ANY;
    if (bind(server, (struct sockaddr *)&address, sizeof address) || listen(server, 1))
        return fail("listen");
    puts("kvmpy-guest: listening");
    fflush(stdout);
    peer = accept(server, NULL, NULL);
    if (peer < 0)
        return fail("accept");
    if (!strcmp(argv[1], "store")) {
        while (total < sizeof kept && (count = read(peer, kept + total, sizeof kept - total)) > 0)
            total += (size_t)count;
        if (send_all(peer, kept, total))
            return fail("write");
    } else {
        while ((count = read(peer, buffer, sizeof buffer)) > 0) {
            if (send_all(peer, buffer, (size_t)count))
                return fail("write");
            total += (size_t)count;
        }
    }
    printf("kvmpy-guest: echoed %zu bytes\n", total);
    return 0;
}
