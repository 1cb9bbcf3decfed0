/*
 * The least that can answer a conflict: one recv(), one send(), nothing looked at.
 *
 *   bare_loop IFNAME FRAME      FRAME: hexadecimal, what is sent for every ARP frame that comes
 */
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ARP)};
    unsigned char answer[64];
    unsigned char frame[2048];
    size_t length = 0;
    int fd;

    if (argc != 3 || strlen(argv[2]) > 2 * sizeof answer)
        return 2;
    for (const char *hex = argv[2]; sscanf(hex, "%2hhx", &answer[length]) == 1; hex += 2)
        length++;
    address.sll_ifindex = (int)if_nametoindex(argv[1]);
    fd = socket(AF_PACKET, SOCK_RAW, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        perror("bare_loop");
        return 1;
    }
    puts("ready");
    fflush(stdout);
    while (recv(fd, frame, sizeof frame, 0) >= 0)
        if (send(fd, answer, length, 0) < 0)
            break;
    perror("bare_loop");
    return 1;
}
