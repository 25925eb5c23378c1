/*
 * PID 1 of the lab's guest: everything the guest does, in one static program.
 *
 * It exists to be a witness. Whatever a host does to the VM (pause, migrate, kill, start twice) must be visible from
 * the network, from the disk image and from inside:
 *   port 7   a line every 10 ms to each client: "<seq> <boot_id> <monotonic_ms>", seq from 0 without holes
 *   port 8   a line in, one line of JSON out (see answer())
 *   disk     a counter record written about 20 times a second, O_DIRECT | O_SYNC (see struct record)
 * A paused VM's clock stands still, so the guest's own monotonic clock cannot see a pause: the CMOS clock, which QEMU keeps
 * on host time, is the second witness. The program also runs udhcpc (as whose script it serves when it is not PID 1),
 * brings hot-plugged CPUs online, powers off on the ACPI power button and reboots on ctrl-alt-del.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/input.h>
#include <linux/rtc.h>
#include <net/if.h>
#include <net/route.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#if !defined STREAM_PORT || !defined ASK_PORT || !defined AREA_OFFSET || !defined SLOT_BYTES || !defined SLOTS
#error "build.py gives the facts of layout.py with -D"
#endif

enum {
    STREAM_PERIOD_MS = 10,
    WATCHED_PERIOD_MS = 10,     /* heartbeat while a stream is open */
    IDLE_PERIOD_MS = 50,        /* heartbeat otherwise: each wake-up costs 0.5 ms of host CPU under emulation */
    DISK_PERIOD_MS = 50,
    CLIENTS_MAX = 256,          /* beyond that a connection is closed at once */
    LINE_MAX_BYTES = 512,
    BUTTON_TRIES = 150,         /* 3 s for the kernel to find the power button; a machine without one starts all the same */
    BUTTON_WAIT_US = 20000,
    DISK_STOP_WAIT_MS = 500,    /* a power button does not wait longer for a stuck disk */
    DISKS_MAX = 8,
};

static char boot_id[37] = "unknown";
static char hostname[32] = "hostler-unknown";

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void say(const char *format, ...)
{
    char line[LINE_MAX_BYTES];
    int n = snprintf(line, sizeof line, "hostler-guest %lld ms: ", (long long)(now_ns() / 1000000));
    va_list args;
    va_start(args, format);
    vsnprintf(line + n, sizeof line - n - 1, format, args);
    va_end(args);
    strcat(line, "\n");
    if (write(STDOUT_FILENO, line, strlen(line)) < 0)
        return; /* no console: there is nobody to tell */
}

static bool read_text(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, text, size - 1);
    close(fd);
    if (n <= 0)
        return false;
    text[n] = 0;
    text[strcspn(text, "\n")] = 0;
    return true;
}

static void write_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        say("cannot write %s: %s", path, strerror(errno));
    if (fd >= 0)
        close(fd);
}

static void raise_to(_Atomic int64_t *maximum, int64_t value)
{
    int64_t seen = atomic_load(maximum);
    while (value > seen && !atomic_compare_exchange_weak(maximum, &seen, value))
        ;
}

/* Until the next multiple of the period: threads with equal or nested periods wake together, and one that is late goes
   on from where it is instead of catching up in a burst. */
static void sleep_to_multiple(int64_t period_ms)
{
    int64_t period_ns = period_ms * 1000000, due_ns = (now_ns() / period_ns + 1) * period_ns;
    const struct timespec due = {.tv_sec = due_ns / 1000000000, .tv_nsec = due_ns % 1000000000};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
}

static void start_thread(void *(*body)(void *), const char *what)
{
    pthread_t thread;
    int error = pthread_create(&thread, NULL, body, NULL);
    if (error)
        say("cannot start %s: %s", what, strerror(error));
}

/* ---- witness 1: a heartbeat on the guest's own clock; sees starvation and a stopped QEMU process ---- */

static _Atomic int64_t max_stall_ns;
static _Atomic int streams; /* open stream connections */

static void *heartbeat(void *unused)
{
    (void)unused;
    struct sched_param priority = {.sched_priority = 10};
    pthread_setschedparam(pthread_self(), SCHED_FIFO, &priority);
    for (int64_t last = now_ns();;) {
        sleep_to_multiple(atomic_load(&streams) ? WATCHED_PERIOD_MS : IDLE_PERIOD_MS);
        int64_t now = now_ns();
        raise_to(&max_stall_ns, now - last);
        last = now;
    }
    return NULL;
}

/* ---- witness 2: the CMOS clock against the guest's own; sees a paused VM, a second or two later ---- */

enum {
    PAUSE_MIN_NS = 3000000,     /* below that it is the jitter of one interrupt */
    PAUSE_SETTLE_EDGES = 3,     /* the first edge after a pause may come late and show only a part of it */
};
static _Atomic int64_t max_pause_ns, paused_total_ns, clock_edges;

static void *compare_clocks(void *unused)
{
    (void)unused;
    int fd = open("/dev/rtc0", O_RDONLY | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, RTC_UIE_ON, 0) < 0) {
        say("no CMOS clock interrupt, pauses will not be seen from inside: %s", strerror(errno));
        return NULL;
    }
    /* lead = CMOS time minus monotonic time at a second's edge. An edge seen late makes it smaller for once, a pause
       makes it larger for good: so it is compared with the largest lead so far. */
    int64_t largest = INT64_MIN, before_pause = 0, reported = 0;
    int settling = 0;
    for (;;) {
        unsigned long interrupts;
        if (read(fd, &interrupts, sizeof interrupts) < 0)
            continue;
        int64_t now = now_ns();
        struct rtc_time cmos;
        if (ioctl(fd, RTC_RD_TIME, &cmos) < 0)
            continue;
        struct tm tm = {.tm_sec = cmos.tm_sec, .tm_min = cmos.tm_min, .tm_hour = cmos.tm_hour,
                        .tm_mday = cmos.tm_mday, .tm_mon = cmos.tm_mon, .tm_year = cmos.tm_year};
        int64_t lead = (int64_t)timegm(&tm) * 1000000000LL - now;
        atomic_fetch_add(&clock_edges, 1);
        if (largest == INT64_MIN || atomic_load(&clock_edges) <= 2) {
            largest = lead > largest ? lead : largest;
            continue;
        }
        if (settling == 0 && lead > largest + PAUSE_MIN_NS) {
            settling = PAUSE_SETTLE_EDGES;
            before_pause = largest;
            reported = 0;
        }
        if (lead > largest)
            largest = lead;
        if (settling > 0) {
            settling--;
            int64_t pause = largest - before_pause;
            atomic_fetch_add(&paused_total_ns, pause - reported);
            reported = pause;
            raise_to(&max_pause_ns, pause);
        } else {
            largest -= (largest - lead) / 16; /* follow the drift between the two clocks */
        }
    }
    return NULL;
}

/* ---- the disk counter ---- */

/* layout.py has the same record for readers outside. */
struct record {
    char magic[8];
    uint32_t version;           /* 1 */
    uint32_t slots;
    uint64_t counter;           /* goes on over reboots */
    uint64_t monotonic_ns;
    uint64_t foreign;           /* times this boot found a record that it had not written */
    uint64_t reserved;
    char boot_id[36];
    uint32_t reserved2;
    uint32_t crc;               /* CRC-32 (zlib) of all bytes before it */
};
_Static_assert(offsetof(struct record, crc) == 88, "record layout is documented");

static _Atomic uint64_t disk_counter, disk_foreign, disk_errors;
static _Atomic int64_t max_disk_write_ns;
static _Atomic bool disk_stop, disk_stopped = true;

static uint32_t crc32_of(const void *data, size_t size)
{
    uint32_t crc = ~0u;
    for (const uint8_t *p = data; size--; p++) {
        crc ^= *p;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    return ~crc;
}

static bool valid(const struct record *r)
{
    return !memcmp(r->magic, "HOSTLERC", 8) && r->crc == crc32_of(r, offsetof(struct record, crc));
}

/* The disk that this guest booted from is known by the kernel's boot sector text, not by its name. */
static int open_own_disk(void)
{
    for (int i = 0; i < DISKS_MAX; i++) {
        char path[16], sector[512];
        snprintf(path, sizeof path, "/dev/vd%c", 'a' + i);
        int fd = open(path, O_RDWR | O_DIRECT | O_SYNC | O_CLOEXEC);
        if (fd < 0)
            continue;
        int plain = open(path, O_RDONLY | O_CLOEXEC);
        bool ours = plain >= 0 && pread(plain, sector, sizeof sector, 0) == sizeof sector &&
                    memmem(sector, sizeof sector, "Hostler guest", 13);
        if (plain >= 0)
            close(plain);
        if (ours) {
            say("counter on %s", path);
            return fd;
        }
        close(fd);
    }
    return -1;
}

static off_t slot_offset(uint64_t counter)
{
    return AREA_OFFSET + (off_t)(counter % SLOTS) * SLOT_BYTES;
}

static uint64_t largest_counter(int fd, char *area)
{
    uint64_t largest = 0;
    if (pread(fd, area, SLOTS * SLOT_BYTES, AREA_OFFSET) != SLOTS * SLOT_BYTES)
        atomic_fetch_add(&disk_errors, 1);
    for (int i = 0; i < SLOTS; i++) {
        const struct record *r = (const void *)(area + i * SLOT_BYTES);
        if (valid(r) && r->counter > largest)
            largest = r->counter;
    }
    return largest;
}

static void write_record(int fd, char *slot, struct record *next)
{
    next->crc = crc32_of(next, offsetof(struct record, crc));
    memcpy(slot, next, sizeof *next);
    int64_t started = now_ns();
    if (pwrite(fd, slot, SLOT_BYTES, slot_offset(next->counter)) != SLOT_BYTES)
        atomic_fetch_add(&disk_errors, 1);
    else
        atomic_store(&disk_counter, next->counter);
    raise_to(&max_disk_write_ns, now_ns() - started);
}

/* Whether the disk holds something that this boot did not write: our last record changed, or a writer ahead of us has
   already filled our next slot. One request, except where the ring wraps. */
static bool foreign_record(int fd, char *slots, const struct record *last)
{
    off_t own = slot_offset(last->counter), next = slot_offset(last->counter + 1);
    bool ok;
    if (next > own)
        ok = pread(fd, slots, 2 * SLOT_BYTES, own) == 2 * SLOT_BYTES;
    else
        ok = pread(fd, slots, SLOT_BYTES, own) == SLOT_BYTES &&
             pread(fd, slots + SLOT_BYTES, SLOT_BYTES, next) == SLOT_BYTES;
    if (!ok) {
        atomic_fetch_add(&disk_errors, 1);
        return false;
    }
    const struct record *ahead = (const void *)(slots + SLOT_BYTES);
    return memcmp(slots, last, sizeof *last) || (valid(ahead) && ahead->counter > last->counter);
}

static void *count_on_disk(void *unused)
{
    (void)unused;
    int fd = open_own_disk();
    char *area = aligned_alloc(SLOT_BYTES, SLOTS * SLOT_BYTES);
    if (fd < 0 || !area) {
        say("no counter disk");
        return NULL;
    }
    atomic_store(&disk_stopped, false);
    struct record next = {.version = 1, .slots = SLOTS, .counter = largest_counter(fd, area)};
    memcpy(next.magic, "HOSTLERC", 8);
    memcpy(next.boot_id, boot_id, sizeof next.boot_id);
    struct record last = {0};
    while (!atomic_load(&disk_stop)) {
        uint64_t errors = atomic_load(&disk_errors);
        if (last.counter && foreign_record(fd, area, &last))
            next.foreign = atomic_fetch_add(&disk_foreign, 1) + 1;
        memset(area, 0, SLOT_BYTES);
        next.counter++;
        next.monotonic_ns = now_ns();
        write_record(fd, area, &next);
        if (atomic_load(&disk_errors) == errors)
            last = next;
        else
            last.counter = 0; /* what the disk holds now is unknown: not evidence of another writer */
        sleep_to_multiple(DISK_PERIOD_MS);
    }
    atomic_store(&disk_stopped, true);
    return NULL;
}

/* ---- the two TCP services ---- */

enum kind { STREAM_LISTENER, ASK_LISTENER, TIMER, STREAM, ASK };

struct peer {
    enum kind kind;
    int fd;
    uint64_t seq;
    size_t in, out;             /* bytes waiting in the two buffers */
    char input[LINE_MAX_BYTES], output[LINE_MAX_BYTES];
};
static struct peer *peers[CLIENTS_MAX];
static int epoll_fd, timer_fd;

static void set_timer(bool on)
{
    long ns = on ? STREAM_PERIOD_MS * 1000000L : 0;
    struct itimerspec period = {.it_interval.tv_nsec = ns, .it_value.tv_nsec = ns};
    timerfd_settime(timer_fd, 0, &period, NULL);
}

static void watch(struct peer *peer, uint32_t events, int how)
{
    struct epoll_event event = {.events = events, .data.ptr = peer};
    epoll_ctl(epoll_fd, how, peer->fd, &event);
}

static void listen_on(struct peer *peer, int port)
{
    int on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    peer->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    setsockopt(peer->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(peer->fd, (void *)&address, sizeof address) || listen(peer->fd, 64))
        say("cannot listen on port %d: %s", port, strerror(errno));
    watch(peer, EPOLLIN, EPOLL_CTL_ADD);
}

static void drop(struct peer *peer)
{
    for (int i = 0; i < CLIENTS_MAX; i++)
        if (peers[i] == peer)
            peers[i] = NULL;
    if (peer->kind == STREAM && --streams == 0)
        set_timer(false);
    close(peer->fd);
    free(peer);
}

static void accept_one(struct peer *listener)
{
    int on = 1, fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return;
    int place = 0;
    while (place < CLIENTS_MAX && peers[place])
        place++;
    struct peer *peer = place < CLIENTS_MAX ? calloc(1, sizeof *peer) : NULL;
    if (!peer) {
        close(fd);
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    peer->fd = fd;
    peer->kind = listener->kind == STREAM_LISTENER ? STREAM : ASK;
    peers[place] = peer;
    watch(peer, EPOLLIN, EPOLL_CTL_ADD);
    if (peer->kind == STREAM && streams++ == 0)
        set_timer(true);
}

/* Sends what is waiting; false when the connection is gone. */
static bool flush(struct peer *peer)
{
    while (peer->out) {
        ssize_t n = send(peer->fd, peer->output, peer->out, MSG_NOSIGNAL);
        if (n < 0)
            return errno == EAGAIN || errno == EINTR;
        peer->out -= n;
        memmove(peer->output, peer->output + n, peer->out);
    }
    return true;
}

/* A client too slow to take its last line gets no new one: seq has no holes, the time stamps show the delay. */
static void stream_line(struct peer *peer)
{
    if (!peer->out)
        peer->out = snprintf(peer->output, sizeof peer->output, "%llu %s %lld\n", (unsigned long long)peer->seq++,
                             boot_id, (long long)(now_ns() / 1000000));
    if (!flush(peer))
        drop(peer);
}

static double take_ms(_Atomic int64_t *maximum_ns)
{
    return atomic_exchange(maximum_ns, 0) / 1e6;
}

static long mem_total_kib(void)
{
    char text[128];
    long kib = 0;
    if (!read_text("/proc/meminfo", text, sizeof text) || sscanf(text, "MemTotal: %ld", &kib) != 1)
        return 0;
    return kib;
}

static void answer(struct peer *peer)
{
    double stall_ms = take_ms(&max_stall_ns), pause_ms = take_ms(&max_pause_ns);
    int n = snprintf(
        peer->output, sizeof peer->output,
        "{\"boot_id\":\"%s\",\"hostname\":\"%s\",\"uptime_ms\":%lld,\"mem_total_kib\":%ld,\"vcpus\":%ld,"
        "\"disk_counter\":%llu,\"disk_foreign\":%llu,\"disk_errors\":%llu,\"max_disk_write_ms\":%.1f,"
        "\"max_gap_ms\":%.1f,\"max_stall_ms\":%.1f,\"max_pause_ms\":%.1f,\"paused_total_ms\":%.1f,\"clock_edges\":%lld}\n",
        boot_id, hostname, (long long)(now_ns() / 1000000), mem_total_kib(), sysconf(_SC_NPROCESSORS_ONLN),
        (unsigned long long)atomic_load(&disk_counter), (unsigned long long)atomic_load(&disk_foreign),
        (unsigned long long)atomic_load(&disk_errors), take_ms(&max_disk_write_ns),
        stall_ms > pause_ms ? stall_ms : pause_ms, stall_ms, pause_ms, atomic_load(&paused_total_ns) / 1e6,
        (long long)atomic_load(&clock_edges));
    peer->out = n < (int)sizeof peer->output ? n : 0;
}

static void receive(struct peer *peer)
{
    ssize_t n = recv(peer->fd, peer->input + peer->in, sizeof peer->input - peer->in, 0);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
        drop(peer);
        return;
    }
    if (n < 0 || peer->kind == STREAM)
        return; /* what stream clients send is read and forgotten */
    peer->in += n;
    char *end;
    while ((end = memchr(peer->input, '\n', peer->in))) {
        size_t line = end + 1 - peer->input;
        peer->in -= line;
        memmove(peer->input, end + 1, peer->in);
        if (!peer->out)
            answer(peer);
        if (!flush(peer)) {
            drop(peer);
            return;
        }
    }
    if (peer->in == sizeof peer->input)
        drop(peer); /* a line longer than any that we know */
}

static void *serve(void *unused)
{
    (void)unused;
    static struct peer stream_listener = {.kind = STREAM_LISTENER}, ask_listener = {.kind = ASK_LISTENER},
                       timer = {.kind = TIMER};
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer.fd = timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    watch(&timer, EPOLLIN, EPOLL_CTL_ADD);
    listen_on(&stream_listener, STREAM_PORT);
    listen_on(&ask_listener, ASK_PORT);
    for (;;) {
        /* One event at a time: handling one may free the peer that a second one would point to. */
        struct epoll_event event;
        if (epoll_wait(epoll_fd, &event, 1, -1) != 1)
            continue;
        struct peer *peer = event.data.ptr;
        uint64_t expirations;
        switch (peer->kind) {
        case STREAM_LISTENER:
        case ASK_LISTENER:
            accept_one(peer);
            break;
        case TIMER:
            if (read(timer_fd, &expirations, sizeof expirations) == sizeof expirations)
                for (int i = 0; i < CLIENTS_MAX; i++)
                    if (peers[i] && peers[i]->kind == STREAM)
                        stream_line(peers[i]);
            break;
        case STREAM:
        case ASK:
            receive(peer);
            break;
        }
    }
    return NULL;
}

/* ---- network configuration: this program as udhcpc's script ---- */

static struct sockaddr inet(const char *text)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    inet_pton(AF_INET, text, &address.sin_addr);
    struct sockaddr generic;
    memcpy(&generic, &address, sizeof generic);
    return generic;
}

static int configure(const char *what)
{
    const char *name = getenv("interface"), *ip = getenv("ip"), *subnet = getenv("subnet"), *router = getenv("router");
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq request = {0};
    if (!name || fd < 0)
        return 1;
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (!strcmp(what, "deconfig")) {
        request.ifr_addr = inet("0.0.0.0");
        ioctl(fd, SIOCSIFADDR, &request);
        request.ifr_flags = IFF_UP | IFF_RUNNING;
        return ioctl(fd, SIOCSIFFLAGS, &request) < 0;
    }
    if ((strcmp(what, "bound") && strcmp(what, "renew")) || !ip)
        return 0;
    request.ifr_addr = inet(ip);
    if (ioctl(fd, SIOCSIFADDR, &request) < 0)
        say("cannot set address %s: %s", ip, strerror(errno));
    request.ifr_netmask = inet(subnet ? subnet : "255.255.255.0");
    ioctl(fd, SIOCSIFNETMASK, &request);
    if (router) {
        char first[16] = "";
        sscanf(router, "%15[0-9.]", first);
        struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
        route.rt_dst = inet("0.0.0.0");
        route.rt_genmask = inet("0.0.0.0");
        route.rt_gateway = inet(first);
        if (ioctl(fd, SIOCADDRT, &route) < 0 && errno != EEXIST)
            say("cannot route via %s: %s", first, strerror(errno));
    }
    if (!strcmp(what, "bound"))
        say("address %s", ip);
    return 0;
}

/* ---- PID 1 ---- */

static void load_modules(void)
{
    FILE *list = fopen("/modules/order", "re");
    char name[128], path[160];
    while (list && fscanf(list, "%127s", name) == 1) {
        snprintf(path, sizeof path, "/modules/%s", name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
            say("module %s: %s", name, strerror(errno));
        if (fd >= 0)
            close(fd);
    }
    if (list)
        fclose(list);
}

static void identify(void)
{
    char mac[32] = "";
    unsigned b[6];
    if (read_text("/sys/class/net/eth0/address", mac, sizeof mac)) {
        /* Before the kernel has enough entropy, two guests born alike must still differ. */
        int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
        uint64_t salt[2] = {now_ns(), __builtin_ia32_rdtsc()};
        if (fd >= 0 && (write(fd, mac, sizeof mac) < 0 || write(fd, salt, sizeof salt) < 0))
            say("cannot salt the boot id: %s", strerror(errno));
        if (fd >= 0)
            close(fd);
        if (sscanf(mac, "%x:%x:%x:%x:%x:%x", b, b + 1, b + 2, b + 3, b + 4, b + 5) == 6)
            snprintf(hostname, sizeof hostname, "hostler-%02x%02x%02x", b[3] & 255, b[4] & 255, b[5] & 255);
    }
    if (sethostname(hostname, strlen(hostname)) || !read_text("/proc/sys/kernel/random/boot_id", boot_id, sizeof boot_id))
        say("no identity: %s", strerror(errno));
}

static pid_t start_dhcp(void)
{
    if (access("/sys/class/net/eth0", F_OK))
        return 0;
    char option[64];
    snprintf(option, sizeof option, "hostname:%s", hostname);
    pid_t pid = fork();
    if (pid == 0) {
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        int nowhere = open("/dev/null", O_RDWR);
        dup2(nowhere, STDERR_FILENO); /* its progress messages; the address is said by configure() */
        /* In the foreground, without -n, it asks again until it is answered; -t 8 -T 1 -A 1: each second. */
        execl("/busybox", "udhcpc", "-f", "-i", "eth0", "-s", "/init", "-x", option, "-t", "8", "-T", "1", "-A", "1", NULL);
        _exit(127);
    }
    return pid;
}

static void finish(int how, const char *why)
{
    say("%s", why);
    atomic_store(&disk_stop, true);
    const struct timespec moment = {.tv_nsec = 5000000};
    for (int64_t end = now_ns() + DISK_STOP_WAIT_MS * 1000000LL; !atomic_load(&disk_stopped) && now_ns() < end;)
        clock_nanosleep(CLOCK_MONOTONIC, 0, &moment, NULL);
    reboot(how);
    say("%s failed: %s", why, strerror(errno));
}

static void online_new_cpus(void)
{
    char present[64], online[64], path[64];
    if (!read_text("/sys/devices/system/cpu/present", present, sizeof present) ||
        !read_text("/sys/devices/system/cpu/online", online, sizeof online) || !strcmp(present, online))
        return;
    for (int cpu = 1; cpu < 256; cpu++) {
        char state[8];
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/online", cpu);
        if (read_text(path, state, sizeof state) && state[0] == '0') {
            write_text(path, "1");
            say("cpu%d online", cpu);
        }
    }
}

static bool power_key(int fd)
{
    struct input_event event;
    while (read(fd, &event, sizeof event) == sizeof event)
        if (event.type == EV_KEY && event.code == KEY_POWER && event.value == 1)
            return true;
    return false;
}

/* True once the power button is among the watched. What is pressed before its device is open is lost, so this comes before anything that
 * tells the outside that the guest is up. */
static bool watch_keys(int poll_fd)
{
    static bool watched[8];
    static bool button;
    for (int i = 0; i < 8; i++) {
        char path[32], name[64] = "";
        snprintf(path, sizeof path, "/dev/input/event%d", i);
        int fd = watched[i] ? -1 : open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        if (fd < 0 || epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event))
            continue;
        watched[i] = true;
        button |= ioctl(fd, EVIOCGNAME(sizeof name - 1), name) > 0 && !strcmp(name, "Power Button");
    }
    return button;
}

int main(int argc, char **argv)
{
    if (getpid() != 1)
        return argc > 1 ? configure(argv[1]) : 1;

    mount("dev", "/dev", "devtmpfs", 0, "");
    mount("proc", "/proc", "proc", 0, "");
    mount("sys", "/sys", "sysfs", 0, "");
    int console = open("/dev/console", O_RDWR);
    for (int fd = 0; console >= 0 && fd < 3; fd++)
        dup2(console, fd);
    say("init");

    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGCHLD);
    sigprocmask(SIG_BLOCK, &signals, NULL); /* before any thread, so that all inherit it */
    reboot(RB_DISABLE_CAD);                 /* ctrl-alt-del arrives as SIGINT */

    load_modules();
    identify();
    int poll_fd = epoll_create1(EPOLL_CLOEXEC), signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = signal_fd};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, signal_fd, &event);
    for (int tries = 0; tries < BUTTON_TRIES && !watch_keys(poll_fd); tries++)
        usleep(BUTTON_WAIT_US);
    pid_t dhcp = start_dhcp();
    start_thread(serve, "the services");
    start_thread(count_on_disk, "the disk counter");
    start_thread(heartbeat, "the heartbeat");
    start_thread(compare_clocks, "the clock witness");
    say("ready boot_id=%s hostname=%s", boot_id, hostname);

    for (;;) {
        int n = epoll_wait(poll_fd, &event, 1, 1000);
        if (n == 1 && event.data.fd != signal_fd && power_key(event.data.fd))
            finish(RB_POWER_OFF, "power button: powering off");
        struct signalfd_siginfo info;
        while (n == 1 && event.data.fd == signal_fd && read(signal_fd, &info, sizeof info) == sizeof info)
            if (info.ssi_signo == SIGINT)
                finish(RB_AUTOBOOT, "ctrl-alt-del: rebooting");
        for (pid_t pid; (pid = waitpid(-1, NULL, WNOHANG)) > 0;)
            if (pid == dhcp)
                dhcp = 0;
        if (n == 0) {
            watch_keys(poll_fd);
            online_new_cpus();
            if (!dhcp)
                dhcp = start_dhcp();
        }
    }
}
